"""`fastserve export --kubernetes`: manifests instead of a model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fastserve.cli.main import show
from fastserve.config import check, load_config, parse_override
from fastserve.distributed import kubernetes
from fastserve.errors import ConfigError, UserError
from fastserve.registry.names import parse_reference


def export_manifests(what: str, out: Path | None, words: Sequence[str], *, name: str | None, as_json: bool) -> None:
    """Write the manifests of a configuration (to train, then serve), or of a model (to serve), to `out`."""
    if out is None:
        raise UserError("where shall the manifests go? Add --out FOLDER")
    options = check(kubernetes.ClusterOptions, _values(words), "--set")
    if Path(what).suffix in (".yaml", ".yml"):
        config = load_config(what, (), {"name": name} if name else {})
        model, content = str(config.name), kubernetes.manifests(config, options)
    else:
        wanted = parse_reference(what)
        model = wanted.name
        service = kubernetes.inference_service(model, wanted.selector or options.alias, options)
        content = {"claim.yaml": [kubernetes.claim(options)], "serve.yaml": [service]}
    paths = kubernetes.write(out, content)
    secret = kubernetes.secret_name(model, options)
    show({"files": [str(path) for path in paths], "secret": secret}, _text(paths, secret), as_json=as_json)


def _values(words: Sequence[str]) -> dict[str, Any]:
    """`image=registry/fastserve:1` words; a number that is meant as text (cpu=4) becomes text."""
    values: dict[str, Any] = {}
    for word in words:
        path, value = parse_override(word)
        if len(path) > 1:
            raise ConfigError(f"--set {word}: expected KEY=VALUE")
        is_count = path[0] == "gpus"
        values[path[0]] = value if is_count or value is None else word.partition("=")[2].strip()
    return values


def _text(paths: Sequence[Path], secret: str) -> str:
    names = " ".join(f"-f {path}" for path in paths if path.name != "serve.yaml")
    serve = paths[-1]
    return (
        "wrote " + ", ".join(map(str, paths)) + "\n\n"
        f"kubectl apply {names}\n"
        f"kubectl create secret generic {secret} --from-file=api-keys=FILE   # one NAME:KEY a line\n"
        f"kubectl apply -f {serve}"
    )

"""Manifests pass the strict schemas of their kinds, as kubeconform checks them, and say what the configuration says."""

from __future__ import annotations

import copy
import json
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from fastserve.config import Config, DistributedConfig, check, load_config
from fastserve.distributed import kubernetes
from fastserve.distributed.kubernetes import ClusterOptions
from fastserve.errors import ConfigError

SCHEMAS = Path(__file__).with_name("schemas")
IMAGE = "registry.example/fastserve:0.1"
JOB: dict[str, Any] = {
    "name": "Sentiment_zh",
    "data": {"train": "评论.tsv"},
    "distributed": {"nodes": "1:4", "workers": 2, "restarts": 5},
}


def config(**changes: Any) -> Config:
    return check(Config, {**JOB, **changes}, "test")


def options(**changes: Any) -> ClusterOptions:
    return check(ClusterOptions, {"image": IMAGE, **changes}, "test")


def validate(manifest: dict[str, Any]) -> None:
    schema = json.loads((SCHEMAS / f"{manifest['kind']}.json").read_text("utf-8"))
    jsonschema.Draft202012Validator(schema).validate(manifest)


def written(content: dict[str, list[dict[str, Any]]]) -> dict[str, dict[str, Any]]:
    """Kind to manifest, read back from the YAML."""
    texts = [kubernetes.to_yaml(documents) for documents in content.values()]
    return {manifest["kind"]: manifest for text in texts for manifest in yaml.safe_load_all(text)}


def objects(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The paths of all objects in a manifest whose keys are fields, not names that a user chooses."""
    if isinstance(value, dict):
        if not path or path[-1] not in ("labels", "annotations", "limits", "requests", "data"):
            yield path
        for key, inner in value.items():
            yield from objects(inner, (*path, key))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from objects(inner, (*path, index))


@pytest.mark.parametrize("name", [path.stem for path in sorted(SCHEMAS.glob("*.json"))])
def test_the_schemas_are_schemas(name: str) -> None:
    jsonschema.Draft202012Validator.check_schema(json.loads((SCHEMAS / f"{name}.json").read_text("utf-8")))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"gpus": 2, "namespace": "models", "storage_class": "nfs", "replicas": "2:6", "keys": "shared-keys"},
        {"cpu": "500m", "memory": "512Mi", "serve_cpu": "1.5", "alias": "latest"},
    ],
)
def test_every_manifest_passes_and_an_unknown_field_anywhere_does_not(changes: dict[str, Any]) -> None:
    found = written(kubernetes.manifests(config(), options(**changes)))
    assert set(found) == {"PersistentVolumeClaim", "ConfigMap", "PyTorchJob", "InferenceService"}
    for manifest in found.values():
        validate(manifest)
        for path in objects(manifest):
            broken = copy.deepcopy(manifest)
            place: Any = broken
            for key in path:
                place = place[key]
            place["replica"] = 1
            with pytest.raises(jsonschema.ValidationError):
                validate(broken)


def test_the_job_says_what_the_configuration_says() -> None:
    found = written(kubernetes.manifests(config(), options(gpus=2)))
    spec = found["PyTorchJob"]["spec"]
    assert spec["nprocPerNode"] == "2"
    elastic = spec["elasticPolicy"]
    assert (elastic["minReplicas"], elastic["maxReplicas"], elastic["maxRestarts"]) == (1, 4, 5)
    assert elastic["rdzvBackend"] == "c10d"
    worker = spec["pytorchReplicaSpecs"]["Worker"]
    assert worker["replicas"] == 4
    (container,) = worker["template"]["spec"]["containers"]
    assert container["name"] == "pytorch"
    assert container["resources"]["limits"]["nvidia.com/gpu"] == 2
    name = found["PyTorchJob"]["metadata"]["name"]
    places = [f"{name}-worker-{number}:29400" for number in range(3)]  # the next when one is lost
    assert shlex.join(container["command"]) == (
        f"fastserve train /etc/fastserve/job.yaml --on local --nodes 1:4 --rendezvous {','.join(places)}"
    )
    assert f"{elastic['rdzvHost']}:{elastic['rdzvPort']}" == places[0]


def test_workers_are_those_of_the_operator_also_where_the_configuration_has_them_elsewhere() -> None:
    elsewhere = {"nodes": "2", "run_on": "ray:10.0.0.1:6379", "rendezvous": "rack1:29400,rack2:29400"}
    given = config().model_copy(update={"distributed": DistributedConfig(**elsewhere)})
    found = written(kubernetes.manifests(given, options()))
    (container,) = found["PyTorchJob"]["spec"]["pytorchReplicaSpecs"]["Worker"]["template"]["spec"]["containers"]
    name = found["PyTorchJob"]["metadata"]["name"]
    words = container["command"][3:]
    assert words == ["--on", "local", "--nodes", "2:2", "--rendezvous", f"{name}-worker-0:29400,{name}-worker-1:29400"]


def test_the_configuration_in_the_map_is_the_configuration(tmp_path: Path) -> None:
    found = written(kubernetes.manifests(config(), options()))
    text = found["ConfigMap"]["data"]["job.yaml"]
    assert "评论.tsv" in text
    path = tmp_path / "job.yaml"
    path.write_text(text, "utf-8")
    assert load_config(path) == config()
    volumes = found["PyTorchJob"]["spec"]["pytorchReplicaSpecs"]["Worker"]["template"]["spec"]["volumes"]
    assert {"name": "configuration", "configMap": {"name": found["ConfigMap"]["metadata"]["name"]}} in volumes


def test_training_and_serving_share_the_claim_and_the_home() -> None:
    found = written(kubernetes.manifests(config(), options(claim="shared")))
    pods = [
        found["PyTorchJob"]["spec"]["pytorchReplicaSpecs"]["Worker"]["template"]["spec"],
        found["InferenceService"]["spec"]["predictor"],
    ]
    assert found["PersistentVolumeClaim"]["metadata"]["name"] == "shared"
    assert found["PersistentVolumeClaim"]["spec"]["accessModes"] == ["ReadWriteMany"]
    for pod in pods:
        (container,) = pod["containers"]
        assert {"name": "FASTSERVE_HOME", "value": "/fastserve/home"} in container["env"]
        assert {"name": "fastserve", "persistentVolumeClaim": {"claimName": "shared"}} in pod["volumes"]
        mounted = {mount["name"] for mount in container["volumeMounts"]}
        assert mounted == {volume["name"] for volume in pod["volumes"]}


def test_the_service_is_probed_drains_and_has_its_key_from_a_secret() -> None:
    predictor = kubernetes.inference_service("sentiment", "production", options())["spec"]["predictor"]
    (container,) = predictor["containers"]
    command = container["command"]
    assert command[:3] == ["fastserve", "serve", "sentiment@production"]
    assert command[command.index("--host") + 1] == "0.0.0.0"
    assert container["readinessProbe"]["httpGet"] == {"path": "/v2/health/ready", "port": 8080}
    assert container["livenessProbe"]["httpGet"] == {"path": "/v2/health/live", "port": 8080}
    assert {"name": "PROTOCOL", "value": "v2"} in container["env"]
    drain = int(command[command.index("--drain-seconds") + 1])
    (pause,) = container["lifecycle"]["preStop"]["exec"]["command"][1:]
    assert predictor["terminationGracePeriodSeconds"] > drain + int(pause)
    (secret,) = [volume["secret"] for volume in predictor["volumes"] if "secret" in volume]
    assert secret["secretName"] == "sentiment-keys"
    (keys,) = [mount for mount in container["volumeMounts"] if mount["name"] == "keys"]
    assert command[command.index("--api-key-file") + 1] == f"{keys['mountPath']}/api-keys"


def test_the_commands_of_the_pods_are_understood() -> None:
    """Every option that a pod's command has is one of the real command."""
    found = written(kubernetes.manifests(config(), options()))
    pod = found["PyTorchJob"]["spec"]["pytorchReplicaSpecs"]["Worker"]["template"]["spec"]
    for command in (
        pod["containers"][0]["command"],
        found["InferenceService"]["spec"]["predictor"]["containers"][0]["command"],
    ):
        shown = run(command[1], "--help")
        assert [word for word in command if word.startswith("--") and word not in shown.stdout] == []


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"name": None}, "needs a name"),
        ({"data": {"train": "/srv/reviews.tsv"}}, "data.train = '/srv/reviews.tsv' is a path of this machine"),
        ({"data": {"train": "~/reviews.tsv"}}, "is a path of this machine"),
        ({"model": {"network": "/models/bert"}}, "model.network = '/models/bert' is a path of this machine"),
        ({"data": {"train": "s3://me:hunter2@bucket/x.tsv"}}, "data.train holds a password"),
        ({"data": {"train": "https://x.example/x.tsv?token=hunter2"}}, "data.train holds a password"),
    ],
)
def test_what_cannot_be_in_a_cluster_is_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said.replace("?", r"\?")) as caught:
        kubernetes.manifests(config(**changes), options())
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("name", ["Sentiment_zh", "3.best", "a" * 100, "x-", "9"])
def test_any_model_name_becomes_a_name_that_kubernetes_allows(name: str) -> None:
    for documents in kubernetes.manifests(config(name=name), options()).values():
        for manifest in documents:
            validate(manifest)
            assert len(manifest["metadata"]["name"]) <= 53  # a pod's name is its job's and `-worker-1234`
            assert manifest["metadata"]["name"][0].isalpha()


def run(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "fastserve", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def test_the_command_writes_what_kubectl_takes(tmp_path: Path) -> None:
    job = tmp_path / "job.yaml"
    job.write_text(yaml.safe_dump(JOB, allow_unicode=True), "utf-8")
    out = tmp_path / "cluster"
    words = ["export", str(job), "--kubernetes", "--out", str(out), "--json"]
    done = run(*words, "--set", f"image={IMAGE}", "--set", "cpu=8", "--set", "gpus=1")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["secret"] == "sentiment-zh-keys"
    assert [Path(path).name for path in result["files"]] == ["claim.yaml", "train.yaml", "serve.yaml"]
    for path in result["files"]:
        for manifest in yaml.safe_load_all(Path(path).read_text("utf-8")):
            validate(manifest)
    wrong = run(*words, "--set", f"image={IMAGE}", "--set", "cpus=8")
    assert wrong.returncode == 2
    assert "did you mean 'cpu'?" in wrong.stderr


def test_a_model_alone_is_served(tmp_path: Path) -> None:
    done = run("export", "sentiment@3", "--kubernetes", "--out", str(tmp_path), "--set", f"image={IMAGE}")
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in tmp_path.iterdir() if path.suffix == ".yaml") == ["claim.yaml", "serve.yaml"]
    service = yaml.safe_load((tmp_path / "serve.yaml").read_text("utf-8"))
    validate(service)
    assert "sentiment@3" in service["spec"]["predictor"]["containers"][0]["command"]

"""LoRA adapters that a server is told of: which folder each name means."""

from __future__ import annotations

from pathlib import Path

from fastserve.errors import ConfigError
from fastserve.serving.names import name_models

FOLDER, CONFIG = "adapter", "adapter_config.json"


def find_adapters(words: str | None) -> dict[str, str]:
    """`NAME=MODEL,...` as folders that `peft` reads, by name. MODEL: as `serve` takes it, tuned with model.merge=false;
    or the folder of an adapter. ConfigError where there is none."""
    named = name_models(words.split(",")) if words else []
    return {model.name: str(_folder(model.reference)) for model in named}


def _folder(reference: str) -> Path:
    from fastserve.registry import Registry

    given = Path(reference)
    folder = given if (given / CONFIG).is_file() else Registry().resolve(reference) / FOLDER
    if not (folder / CONFIG).is_file():
        raise ConfigError(
            f"'{reference}' has no LoRA adapter of its own ({folder / CONFIG} is missing): tune it with model.lora and "
            "model.merge=false, or serve it as a model"
        )
    return folder

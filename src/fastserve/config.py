"""The configuration: what a user may say, its defaults, and how a file and `key.path=value` words become one object.

Every section is frozen and strict: an unknown key is an error that names the nearest known one.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from fastserve.errors import ConfigError, choices

Auto = Literal["auto"]
Positive = Annotated[int, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
S = TypeVar("S", bound="Section")


class Section(BaseModel):
    """A part of the configuration: frozen, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)


class Columns(Section):
    """Which column holds what; null is guessed from the names and contents, and the guess is printed."""

    text: str | None = Field(None, description="column of the texts")
    label: str | list[str] | None = Field(
        None, description="column of the labels, or several 0/1 columns for multi-label"
    )
    separator: str | None = Field(
        None, description="what parts several labels in one cell, for instance '|'; makes the task multi-label"
    )
    prompt: str | None = Field(None, description="generation: column of the prompts")
    completion: str | None = Field(None, description="generation: column of what is written after the prompt")
    messages: str | None = Field(None, description="generation: column of the conversations")
    chosen: str | None = Field(None, description="generation: column of the better answers")
    rejected: str | None = Field(None, description="generation: column of the worse answers")


class DataConfig(Section):
    """Where the texts come from and what is done about faulty rows."""

    train: str | None = Field(
        None,
        description="csv, tsv, jsonl, json, parquet or txt file, also .gz or .zst; a glob; an fsspec address; a Hugging Face data set name",
    )
    validation: str | Fraction | Auto = Field(
        "auto",
        description="a file, a share of the training rows, or auto: a twentieth, at least 200 and at most 2,000 rows, never over a fifth",
    )
    test: str | None = Field(
        None, description="a file for the final report; without it the validation rows are reported"
    )
    columns: Columns = Columns()
    documents: Literal["auto", "row", "file"] = Field(
        "auto",
        description="generation, plain text: what one document is; auto: a txt file, a row of any other file",
    )
    multi_label: bool | Auto = Field(
        "auto",
        description="whether a row may have several labels; auto: when `separator` or several label columns are given, or the labels are lists",
    )
    duplicates: Literal["drop", "refuse", "keep"] = Field(
        "drop",
        description="a training text that is also in validation or test: drop it from training, refuse to train, or keep it",
    )
    bad_rows: int | Fraction = Field(
        0.01,
        description="how many unusable rows (empty text, no label, wrong number of fields) are skipped and listed before the run is refused: a number or a share",
    )
    max_row_bytes: Positive = Field(8 << 20, description="a longer line is a bad row")

    @field_validator("bad_rows")
    @classmethod
    def _not_negative(cls, value: int | float) -> int | float:
        if value < 0:
            raise ValueError("must not be negative")
        return value


class TextConfig(Section):
    """How raw text becomes numbers. The same code, saved with the model, runs in the server."""

    clean: list[str] | Literal["standard", "none"] = Field(
        "standard", description="'standard', 'none', or a list of cleaning steps in order"
    )
    segment: str = Field(
        "auto",
        description="auto, jieba, character, whitespace or subword; auto: what the network prefers for the language of the data; generation: subword, or character, which lets no token span two of them",
    )
    user_dictionary: str | None = Field(
        None, description="a file of words, one a line with an optional frequency, that segmentation keeps whole"
    )
    lowercase: bool = True
    max_length: Positive | Auto = Field(
        "auto", description="tokens kept of a text; auto: 99th percentile of the data, at most 512"
    )
    vocabulary_size: Positive | Auto = Field(
        "auto", description="most tokens in the vocabulary; auto: what the network prefers"
    )
    min_count: Positive = Field(2, description="a word seen less often in training is unknown")
    tokenizer: str | None = Field(
        None,
        description="a tokenizer.json (with segment: subword), or for generation also a local Hugging Face folder; without it one is trained on the data",
    )
    chat_template: str | None = Field(
        None,
        description="generation: a file with a Jinja template for conversations, or the template itself; by default the tokenizer's own, or ChatML",
    )


class ModelConfig(Section):
    """The network. `options` are the network's own (`fastserve schema --network NAME`)."""

    network: str = Field(
        "auto", description="auto, bag, mlp, textcnn, lstm, transformer, a local Hugging Face folder, or module:Class"
    )
    options: dict[str, Any] = Field(default_factory=dict)
    start: str | None = Field(
        None,
        description="a model of one's own to go on from (name, name@3, name@alias or folder): its text steps, network and weights",
    )
    lora: dict[str, Any] | None = Field(
        None,
        description="generation: train small matrices beside frozen weights; {} takes the defaults of rank, alpha, dropout, targets, base",
    )
    merge: bool = Field(
        False, description="generation: add what LoRA learned to the weights at the end, instead of keeping it apart"
    )
    embeddings: str | None = Field(
        None,
        description="pretrained word vectors (text format of word2vec/GloVe/fastText, also .gz) for the classic networks",
    )


class TrainConfig(Section):
    """The training loop. `auto` asks the network for its recipe."""

    epochs: Positive | Auto = "auto"
    max_steps: Positive | None = Field(
        None, description="optimizer steps after which the run ends, and over which the schedule goes"
    )
    batch: Positive | Auto = Field("auto", description="rows in one optimizer step")
    micro_batch: Positive | Auto = Field(
        "auto",
        description="what a worker computes at once of a step: rows, or tokens of a language model; the step is the same. auto: all, or as much as the memory takes",
    )
    learning_rate: Annotated[float, Field(gt=0)] | Auto = "auto"
    optimizer: Literal["auto", "adamw", "muon", "adagrad", "sgd"] = Field(
        "auto", description="muon: for matrices of hidden layers, and adamw for all else"
    )
    matrix_rate: Annotated[float, Field(gt=0)] | Auto = Field(
        "auto", description="with optimizer: muon, the learning rate of the matrices; all else has learning_rate"
    )
    weight_decay: Annotated[float, Field(ge=0)] | Auto = "auto"
    schedule: Literal["auto", "linear", "cosine", "wsd", "constant", "plateau"] = Field(
        "auto",
        description="what the learning rate does after the warm-up; wsd: is stable, then decays; plateau: is reduced when validation stops improving",
    )
    decay: Annotated[float, Field(gt=0, le=1)] | Auto = Field(
        "auto", description="with schedule: wsd, the share of the steps at the end in which the rate falls to 0"
    )
    warmup: Fraction | Auto = Field("auto", description="share of the steps in which the rate rises to its full value")
    gradient_clip: Annotated[float, Field(ge=0)] | Auto = Field(
        "auto", description="largest norm of the gradient; 0 clips nothing"
    )
    label_smoothing: Fraction | Auto = "auto"
    z_loss: Annotated[float, Field(ge=0)] | Auto = Field(
        "auto", description="of a language model: weight of a loss that keeps its logits small"
    )
    class_weights: Literal["none", "balanced"] | dict[str, float] = Field(
        "none", description="balanced: rare classes count more, by 1 / frequency; or a weight for each label"
    )
    precision: Literal["auto", "bf16", "fp32"] = Field(
        "auto", description="auto: bf16 where the processor multiplies it fast and the network gains"
    )
    beta: Annotated[float, Field(gt=0)] = Field(
        0.1, description="generation, preferences: how closely the network is held to what it was"
    )
    chosen_weight: Annotated[float, Field(ge=0)] = Field(
        0.0, description="generation, preferences: how much the likelihood of chosen answers counts beside their margin"
    )
    device: str = "auto"
    compile: bool | Auto = Field(
        "auto",
        description="whether torch.compile makes the network faster, after a minute or so; auto: on a GPU, for 1,000 steps or more",
    )
    checkpoint_activations: bool = Field(
        False, description="compute blocks again in the backward pass: less memory, a third more time"
    )
    on_divergence: Literal["stop", "lower_rate", "skip_batch"] = Field(
        "lower_rate",
        description="when the loss is no number, or a spike: end the run, or go back to the last good checkpoint and halve the learning rate, or leave out the batch",
    )
    spike: Annotated[float, Field(ge=0)] | Auto = Field(
        "auto", description="a loss so many times the median of the latest ones has diverged too; 0: none has"
    )
    keep: Literal["auto", "best", "last"] = Field(
        "auto", description="which weights are kept: those of the best evaluation, or those of the last step"
    )
    early_stopping: Annotated[int, Field(ge=0)] | Auto = Field(
        "auto", description="stop after so many evaluations without improvement; 0 never stops"
    )
    plateau_patience: Positive = Field(
        1, description="with schedule: plateau, evaluations without improvement before the rate is halved"
    )
    metric: str = Field(
        "auto", description="what 'best' means: auto (accuracy; macro-F1 for multi-label), loss, accuracy, f1_macro"
    )
    evaluate_every: Positive | Auto = Field(
        "auto", description="steps between evaluations inside the run; auto: an epoch"
    )
    evaluate_rows: Positive | Auto = Field(
        "auto", description="validation rows for an evaluation inside the run, spread over all of them; auto: all"
    )
    checkpoint_seconds: Annotated[float, Field(ge=0)] = Field(
        60.0, description="time between checkpoints; a run that is killed loses at most what came after the last one"
    )
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    resume: Literal["auto", "never"] = Field(
        "auto", description="auto: an unfinished run of the same configuration and data goes on where it stopped"
    )
    threads: Positive | Auto = "auto"


class DistributedConfig(Section):
    """Several processes that train one model. One worker alone needs none of it."""

    strategy: str = Field(
        "ddp",
        description="ddp (gradients averaged every step), fsdp (weights in shards), diloco (for slow links), or module:Class",
    )
    options: dict[str, Any] = Field(default_factory=dict, description="the strategy's own")
    run_on: str = Field(
        "local",
        min_length=1,
        description="who has the workers: local (this machine, and those where the same command is given), ray (a Ray of its own; that of $RAY_ADDRESS where this is set), or ray:ADDRESS (a Ray cluster that this machine is part of)",
    )
    workers: Positive | Auto = Field("auto", description="processes on each machine; auto: one for each GPU, else one")
    nodes: str = Field(
        "1",
        pattern=r"^[1-9]\d*(:[1-9]\d*)?$",
        description="machines: a number, or least:most of a run that goes on while some leave and others join",
    )
    rendezvous: str | None = Field(
        None,
        description="HOST:PORT where several machines meet; several such, by commas, survive the loss of the first",
    )
    timeout_seconds: Annotated[float, Field(gt=0)] = Field(
        60.0, description="a worker that keeps the others waiting for longer is taken for lost"
    )
    stall_seconds: Annotated[float, Field(gt=0)] = Field(
        30.0, description="after so long without a move it is said which worker holds the others up, and where it is"
    )
    restarts: Annotated[int, Field(ge=0)] = Field(
        10, description="how often lost workers are replaced before the run is given up"
    )

    @field_validator("nodes", mode="before")
    @classmethod
    def _as_text(cls, value: Any) -> Any:
        return str(value) if isinstance(value, int) else value

    @property
    def nodes_range(self) -> tuple[int, int]:
        """Least and most machines."""
        least, _, most = self.nodes.partition(":")
        return int(least), int(most or least)

    @property
    def launcher(self) -> tuple[str, str | None]:
        """The name in `run_on`, and the address behind it."""
        return name_and_address(self.run_on)

    @property
    def meets(self) -> bool:
        """Whether the same command is given on several machines, which meet."""
        return self.run_on == "local" and self.nodes_range[1] > 1


class Config(Section):
    """A whole job: raw text to a published model."""

    task: str = Field("classification", description="classification, generation or masked")
    data: DataConfig = DataConfig()
    text: TextConfig = TextConfig()
    model: ModelConfig = ModelConfig()
    train: TrainConfig = TrainConfig()
    distributed: DistributedConfig = DistributedConfig()
    name: str | None = Field(
        None, description="publish under this name when done", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$"
    )

    def to_json(self) -> dict[str, Any]:
        return self.model_dump(mode="json")


def name_and_address(place: str) -> tuple[str, str | None]:
    """`ray:HOST:PORT` to ("ray", "HOST:PORT"): who has the processes, and where."""
    name, _, address = place.partition(":")
    return name, address or None


def home() -> Path:
    """Where models and runs live: $FASTSERVE_HOME, by default ~/.fastserve."""
    return Path(os.environ.get("FASTSERVE_HOME") or Path.home() / ".fastserve")


def load_config(
    path: str | Path | None = None, overrides: Sequence[str] = (), values: Mapping[str, Any] | None = None
) -> Config:
    """Read a YAML file, lay `values` (nested) and then the `key.path=value` words over it, and check the whole.

    ConfigError names the file, the key, what was found and what was expected.
    """
    content = _read_yaml(Path(path)) if path is not None else {}
    _merge(content, values or {})
    for word in overrides:
        key, value = parse_override(word)
        _set(content, key, value)
    return check(Config, content, str(path) if path is not None else "the command")


def parse_override(word: str) -> tuple[list[str], Any]:
    """`train.epochs=3` to (["train", "epochs"], 3); the value is read as YAML, but a Jinja template is a string."""
    key, separator, text = word.partition("=")
    if not separator or not key.strip():
        raise ConfigError(f"'{word}' is not a setting: expected key.path=value, for instance train.epochs=3")
    path = key.strip().split(".")
    if text.lstrip().startswith(("{%", "{{")):  # no mapping begins so
        return path, text
    try:
        return path, yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"the value of '{key}' is not valid YAML: {text!r}") from error


def check(section: type[S], content: Mapping[str, Any], where: str) -> S:
    """`content` as a section, or a ConfigError with one line a fault."""
    try:
        return section.model_validate(content)
    except ValidationError as error:
        raise ConfigError("\n".join(f"{where}: {line}" for line in _faults(section, error))) from None


def _faults(section: type[BaseModel], error: ValidationError) -> Iterator[str]:
    seen = set()
    for fault in error.errors():
        path = [str(part) for part in fault["loc"]]
        if fault["type"] == "extra_forbidden":
            known = _keys_at(section, path[:-1])
            yield f"unknown key '{'.'.join(path)}': {choices(path[-1], known)}"
            continue
        key = ".".join(_real_path(section, path))
        if key not in seen:  # a union reports one fault for each of its members
            seen.add(key)
            yield f"key '{key}' = {fault['input']!r}: {_expected(section, path, fault['msg'])}"


def _real_path(section: type[BaseModel], path: list[str]) -> list[str]:
    """The path without the names of union members that pydantic appends."""
    real: list[str] = []
    model: type[BaseModel] | None = section
    for part in path:
        if model is None or part not in model.model_fields:
            break
        real.append(part)
        kind = model.model_fields[part].annotation
        model = kind if isinstance(kind, type) and issubclass(kind, BaseModel) else None
    return real or path


def _expected(section: type[BaseModel], path: list[str], message: str) -> str:
    real = _real_path(section, path)
    model: type[BaseModel] = section
    for part in real[:-1]:
        kind = model.model_fields[part].annotation
        if not (isinstance(kind, type) and issubclass(kind, BaseModel)):
            return message
        model = kind
    described = model.model_fields[real[-1]] if real and real[-1] in model.model_fields else None
    text = message[0].lower() + message[1:]
    return f"{text} ({described.description})" if described is not None and described.description else text


def _keys_at(section: type[BaseModel], path: list[str]) -> list[str]:
    model = section
    for part in path:
        kind = model.model_fields[part].annotation
        if not (isinstance(kind, type) and issubclass(kind, BaseModel)):
            return []
        model = kind
    return list(model.model_fields)


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text("utf-8"))
    except FileNotFoundError:
        raise ConfigError(
            f"there is no configuration {path}; `fastserve new {path} --task classification` writes one"
        ) from None
    except (IsADirectoryError, UnicodeDecodeError, PermissionError) as error:
        raise ConfigError(f"{path} cannot be read as a YAML file: {error}") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" line {mark.line + 1}" if mark else ""
        raise ConfigError(f"{path}{line} is not valid YAML: {getattr(error, 'problem', error)}") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: expected keys and values, found {type(content).__name__}")
    return content


def _merge(base: dict[str, Any], over: Mapping[str, Any]) -> None:
    for key, value in over.items():
        if isinstance(value, Mapping) and isinstance(base.get(key), dict):
            _merge(base[key], value)
        else:
            base[key] = dict(value) if isinstance(value, Mapping) else value


def _set(content: dict[str, Any], path: list[str], value: Any) -> None:
    for part in path[:-1]:
        inner = content.get(part)
        if inner is None:
            inner = content[part] = {}
        if not isinstance(inner, dict):
            raise ConfigError(f"'{'.'.join(path)}' cannot be set: '{part}' is {inner!r}, not a section")
        content = inner
    content[path[-1]] = value

"""The verbs in Python: train, load, evaluate, serve, and the model that they give and take."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastserve import device
from fastserve.bundle.bundle import Bundle
from fastserve.bundle.predictor import Predictor
from fastserve.config import Columns, Config, DataConfig, TrainConfig, check, home, load_config
from fastserve.errors import ConfigError, DataError, StorageError, choices
from fastserve.registry import Registry, Version
from fastserve.types import Message, Prediction, Report

if TYPE_CHECKING:
    from fastserve.bundle.writer import Prompt, Writer
    from fastserve.evaluation import Comparison, LanguageComparison
    from fastserve.generation.sampling import Sampling
    from fastserve.generation.writing import Written
    from fastserve.training.plan import Plan

Chat = Sequence[Mapping[str, str] | Message]
"""A conversation, as the OpenAI API has it."""


class Model:
    """A trained model: answers, is evaluated, saved and published.

    version: where it stands in the registry, if it does. tensor_parallel: processes that share the network of a model
    that writes.
    """

    def __init__(
        self, bundle: Bundle, *, version: Version | None = None, runtime: str = "auto", tensor_parallel: int = 1
    ) -> None:
        self.bundle = bundle
        self.version = version
        self.runtime = runtime
        self.tensor_parallel = tensor_parallel

    def __repr__(self) -> str:
        return f"Model({self.reference}, {self.bundle.manifest.network.name})"

    @property
    def reference(self) -> str:
        """`name@3`, or the folder of a model that is not published."""
        return self.version.reference if self.version else str(self.bundle.folder)

    @property
    def labels(self) -> list[str]:
        return list(self.bundle.manifest.labels)

    @functools.cached_property
    def predictor(self) -> Predictor:
        if self.tensor_parallel > 1:
            raise ConfigError(f"{self.reference} gives labels: tensor_parallel is for models that write")
        return Predictor(self.bundle, self.runtime)

    @functools.cached_property
    def writer(self) -> Writer:
        """What a model of the task generation writes with. ConfigError for another."""
        from fastserve.bundle.writer import Writer

        return Writer(self.bundle, tensor_parallel=self.tensor_parallel)

    @property
    def writes(self) -> bool:
        """Whether its answers are texts, not labels."""
        return self.bundle.manifest.task == "generation"

    def write(self, prompts: str | Sequence[str | Chat], **settings: Any) -> list[Written]:
        """A text after each prompt: a string, or a conversation as `{"role": ..., "content": ...}` objects. In order.

        Settings: the fields of `generation.sampling.Sampling`, for instance temperature=0.7, max_tokens=200, seed=1.
        """
        from fastserve.generation.sampling import Sampling

        found = check(Sampling, settings, "write()")
        several = [prompts] if isinstance(prompts, str) else prompts
        return self.writer.write([_as_prompt(prompt) for prompt in several], found)

    def predict(self, texts: str | Sequence[str]) -> list[Prediction]:
        """One answer for each text, in order. ConfigError for a model that writes."""
        if self.writes:
            raise ConfigError(f"{self.reference} gives texts and not labels: use write()")
        return self.predictor.predict([texts] if isinstance(texts, str) else list(texts))

    def evaluate(
        self,
        data: str | Path,
        *,
        out: str | Path | None = None,
        questions: str | None = None,
        form: str | None = None,
        **columns: Any,
    ) -> Report:
        """Judge the model on a file that it has not seen. `out`: a folder for report.json and report.html.

        Of a model that writes: `questions`, a file of multiple-choice and cloze rows, and `form`, an exact form that
        its texts must have ("prompt" where each prompt names one).
        """
        from fastserve.evaluation import corpus, model

        if self.writes:
            config = self._data_config(columns)
            return corpus.evaluate_corpus(
                self.writer, str(data), config, out=_path(out), questions=questions, form=form
            )
        if questions is not None or form is not None:
            raise ConfigError(f"{self.reference} gives labels: questions and form are for models that write")
        return model.evaluate_file(self.predictor, str(data), DataConfig(**columns), out=_path(out)).report

    def _data_config(self, settings: Mapping[str, Any]) -> DataConfig:
        """Columns that are not named are those of the training file."""
        given = DataConfig(**settings)
        trained = self.bundle.manifest.lineage.config.get("data", {}).get("columns", {})
        if given.columns != Columns() or not trained:
            return given
        return given.model_copy(update={"columns": Columns(**trained)})

    def compare(
        self, other: Model, data: str | Path, *, out: str | Path | None = None, **columns: Any
    ) -> Comparison | LanguageComparison:
        """Which of two models is better on the same rows, and whether that could be chance."""
        from fastserve.evaluation import corpus, model

        names = (self.reference, other.reference)
        if self.writes != other.writes:
            raise ConfigError(
                f"of {names[0]} and {names[1]} one writes texts and the other gives labels: no comparison"
            )
        if self.writes:
            writers = (self.writer, other.writer)
            config = self._data_config(columns)
            return corpus.compare_on_corpus(writers, names, str(data), config, out=_path(out))
        pair = (self.predictor, other.predictor)
        return model.compare_on_file(pair, names, str(data), DataConfig(**columns), out=_path(out))

    def save(self, folder: str | Path) -> Path:
        """Copy the model folder to a new place, whole or not at all."""
        import shutil

        from fastserve import files

        target = Path(folder)
        if target.exists():
            raise StorageError(f"{target} exists already and is not replaced; remove it or choose another name")
        with files.new_folder(target) as temporary:
            shutil.copytree(self.bundle.folder, temporary, dirs_exist_ok=True)
        return target

    def export(self, runtime: str, *, name: str | None = None, out: str | Path | None = None, **options: Any) -> Model:
        """The model with its network in the form of a faster runtime (onnx, openvino) as well, checked against torch.

        It becomes the next version of `name` (by default of this model's own name), or a folder at `out`. Options are
        the fields of `ExportOptions`: int8, data, columns, max_drop, min_agreement.
        """
        from fastserve import compression

        found = check(compression.ExportOptions, {**options, "runtime": runtime}, "export")
        made = compression.export_as(self.bundle, found, version=self.version, name=name, out=_path(out))
        return Model(made.bundle, version=made.version)

    def publish(self, name: str) -> Version:
        """Make the model the newest version of `name`."""
        self.version = Registry(home()).publish(self.bundle.folder, name)
        return self.version

    def summary(self) -> dict[str, Any]:
        """What a program wants to know about it."""
        manifest = self.bundle.manifest
        return {
            "model": self.reference,
            "folder": str(self.version.path if self.version else self.bundle.folder),
            "task": manifest.task,
            "network": manifest.network.name,
            "labels": list(manifest.labels),
            "metrics": dict(manifest.metrics),
            "seconds": manifest.lineage.duration_seconds,
        }

    def describe(self) -> str:
        """What a person wants to know about it."""
        from fastserve.evaluation.text import report_text

        report = self.bundle.report()
        figures = report_text(report) if report else "(not evaluated)\n"
        folder = self.version.path if self.version else self.bundle.folder
        return f"{figures}\nmodel   {self.reference}\nfolder  {folder}\nreport  {folder / 'report.html'}"


def train(config: Config | str | Path | None = None, **settings: Any) -> Model:
    """Train a model from a configuration, a YAML file, or words alone.

    train("sentiment.yaml", epochs=3); train(task="classification", data="reviews.tsv", network="textcnn").
    Settings: `task`, `name`, `data` (a file or a section), `network`, a section (`text={"lowercase": False}`), or any
    key of the train section. ConfigError names what is unknown.
    """
    device.let_threads_sleep()
    from fastserve.training.job import train as run

    if isinstance(config, Config):
        if settings:
            raise ConfigError("settings beside a Config object would be ambiguous; use Config.model_copy instead")
        job = config
    else:
        job = load_config(config, (), _sections(settings))
    model = Model(run(job))
    if job.name is not None:
        model.version = _publish_once(model, job.name)
    return model


def plan(config: Config, **options: Any) -> Plan:
    """What training steps of `config` would cost on many workers. Options: those of `fastserve plan`."""
    device.let_threads_sleep()
    from fastserve.training.plan import plan as run

    return run(config, **options)


def load(reference: str | Path, *, runtime: str = "auto", tensor_parallel: int = 1) -> Model:
    """A model by `name`, `name@3`, `name@alias` or folder. A bare name: its production version, or else the newest.

    tensor_parallel: processes of this machine that share the network of a model that writes; one model for each
    process of Python.
    """
    registry = Registry(home())
    folder = registry.resolve(str(reference))
    published = folder.parent.parent == registry.store.folder
    version = Version(folder.parent.name, int(folder.name), folder) if published else None
    return Model(Bundle.load(folder), version=version, runtime=runtime, tensor_parallel=tensor_parallel)


def evaluate(reference: str | Path, data: str | Path, **options: Any) -> Report:
    """`load(reference).evaluate(data)`."""
    return load(reference).evaluate(data, **options)


def serve(models: str | Sequence[str], **options: Any) -> int:
    """Answer over HTTP until stopped; the exit code. Options are the fields of `ServeOptions`."""
    from fastserve import serving

    found = check(serving.ServeOptions, options, "serve")
    return serving.serve([models] if isinstance(models, str) else list(models), found)


def read_texts(address: str, column: str | None = None) -> Iterator[str]:
    """The texts of a file in any format that training reads; labels are not needed."""
    from fastserve.data.dataset import open_dataset

    dataset = open_dataset(address, DataConfig(columns=Columns(text=column)), labelled=False)
    return (text for block in dataset.blocks() for text in block.texts)


def sampling(words: Sequence[str]) -> Sampling:
    """`temperature=0.7`, `max_tokens=200` and the like as sampling settings. ConfigError names what is wrong."""
    from fastserve.config import parse_override
    from fastserve.generation.sampling import Sampling

    settings = {".".join(key): value for key, value in map(parse_override, words)}
    return check(Sampling, settings, "the command")


def _as_prompt(prompt: str | Chat) -> Prompt:
    if isinstance(prompt, str):
        return prompt
    try:
        return [one if isinstance(one, Message) else Message(**one) for one in prompt]
    except TypeError:
        raise DataError(
            f"{prompt!r} is no conversation: expected a list of objects with 'role' and 'content'"
        ) from None


def _publish_once(model: Model, name: str) -> Version:
    """The version that the model of a run is: of several machines that have trained it, the first one publishes."""
    import json

    from fastserve import files

    run = model.bundle.folder.parent
    note = run / "published.json"
    with files.lock(run / ".publish", timeout_seconds=600):
        if note.is_file():
            number = json.loads(note.read_text("utf-8"))["version"]
            return Version(name, number, Registry(home()).resolve(f"{name}@{number}"))
        version = model.publish(name)
        files.write_json(note, {"name": name, "version": version.number})
        return version


def _path(value: str | Path | None) -> Path | None:
    return None if value is None else Path(value)


def _sections(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Keyword arguments of `train` as the nested content of a configuration."""
    content: dict[str, Any] = {}
    for key, value in settings.items():
        if key == "data" and not isinstance(value, Mapping):
            content.setdefault("data", {})["train"] = str(value)
        elif key == "network":
            content.setdefault("model", {})["network"] = value
        elif key in Config.model_fields:
            content[key] = {**content.get(key, {}), **value} if isinstance(value, Mapping) else value
        elif key in TrainConfig.model_fields:
            content.setdefault("train", {})[key] = value
        else:
            known = ["network", *Config.model_fields, *TrainConfig.model_fields]
            raise ConfigError(f"train() has no setting '{key}': {choices(key, known)}")
    return content

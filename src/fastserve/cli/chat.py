"""`fastserve chat`."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from fastserve.cli.sections import parallel_option
from fastserve.errors import ConfigError, DataError
from fastserve.types import Message

if TYPE_CHECKING:
    from fastserve.api import Model
    from fastserve.generation.sampling import Sampling

HELP = "an empty line or /exit ends, /reset forgets what was said"


@click.command()
@click.argument("model")
@click.argument("settings", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--system", help="What the assistant is told before the conversation.")
@parallel_option
def chat(model: str, settings: tuple[str, ...], system: str | None, tensor_parallel: int) -> None:
    """Talk to MODEL, a line at a time. KEY=VALUE: sampling settings, for instance temperature=0.7 max_tokens=200.

    A model that was trained on texts or prompts, not on conversations, writes on from each line anew.
    """
    from fastserve import api

    loaded = api.load(model, tensor_parallel=tensor_parallel)
    sampling = api.sampling(settings)
    talk = Talk(loaded, sampling, system)
    if sys.stdin.isatty():
        click.echo(f"{loaded.reference}: {HELP}", err=True)
    while (line := _read()) is not None:
        if line == "/reset":
            talk.reset()
        else:
            talk.say(line)


def _read() -> str | None:
    """What the user says; None when there is no more."""
    if sys.stdin.isatty():
        click.echo("> ", nl=False, err=True)
    line = sys.stdin.readline().strip()
    return None if line in ("", "/exit", "/quit") else line


class Talk:
    """A conversation that goes on. ConfigError for a system message that the model has no place for."""

    def __init__(self, model: Model, sampling: Sampling, system: str | None) -> None:
        self.writer, self.sampling = model.writer, sampling
        self.converses = self.writer.pipeline.kind == "conversation"
        if system is not None and not self.converses:
            raise ConfigError("this model was not trained on conversations, so that --system says nothing to it")
        self.start = [Message("system", system)] if system is not None else []
        self.reset()

    def reset(self) -> None:
        self.messages = list(self.start)

    def say(self, line: str) -> None:
        """Show the answer while it is written."""
        self.messages.append(Message("user", line))
        prompt: Any = self.messages if self.converses else line
        said = []
        try:
            for piece in self.writer.stream(prompt, self.sampling):
                said.append(piece.text)
                click.echo(piece.text, nl=False)
        except DataError as error:
            click.echo(f"{error}; /reset begins anew", err=True)
        click.echo()
        self.messages.append(Message("assistant", "".join(said)))

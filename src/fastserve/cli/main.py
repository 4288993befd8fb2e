"""The commands by name, and what every one of them shares: how errors, results and interruptions are shown."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import traceback
from collections.abc import Sequence
from typing import Any

import click

from fastserve import __version__, device, log
from fastserve.errors import FastServeError, choices
from fastserve.files import disk_errors
from fastserve.plugins import import_object

COMMANDS = {
    "new": "fastserve.cli.configuration:new",
    "schema": "fastserve.cli.configuration:schema",
    "train": "fastserve.cli.train:train",
    "evaluate": "fastserve.cli.evaluate:evaluate",
    "predict": "fastserve.cli.predict:predict",
    "chat": "fastserve.cli.chat:chat",
    "serve": "fastserve.cli.serve:serve",
    "route": "fastserve.cli.route:route",
    "simulate": "fastserve.cli.simulate:simulate",
    "export": "fastserve.cli.export:export",
    "models": "fastserve.cli.models:models",
    "data": "fastserve.cli.data:data",
    "doctor": "fastserve.cli.doctor:doctor",
    "plan": "fastserve.cli.plan:plan",
    "worker": "fastserve.cli.worker:worker",
}
"""Command to module:function; a command is imported when it is asked for, so that `--help` and `serve` start fast."""


class LazyGroup(click.Group):
    """A group whose commands are imported by name."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            raise click.UsageError(f"there is no command '{cmd_name}': {choices(cmd_name, COMMANDS)}")
        command: click.Command = import_object(COMMANDS[cmd_name])
        return command


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="fastserve")
def group() -> None:
    """From raw text to a language model that answers over HTTP.

    \b
      fastserve train --data reviews.tsv --task classification --name sentiment
      fastserve evaluate sentiment --data test.tsv
      fastserve predict sentiment "fast delivery, good quality"
      fastserve serve sentiment
      fastserve train --data poems.jsonl --task generation --name poet
      fastserve chat poet
    """


json_option = click.option(
    "--json", "as_json", is_flag=True, help="The last line of standard output is one JSON object."
)


def show(result: dict[str, Any], text: str, *, as_json: bool) -> None:
    """Print a result: for a program one line of JSON, for a person the text."""
    click.echo(json.dumps(result, ensure_ascii=False, allow_nan=False) if as_json else text)


def run(arguments: Sequence[str]) -> int:
    """Run one command. 0: done; 1: the work failed; 2: the words or the file were wrong; 130: interrupted."""
    log.configure()
    device.let_threads_sleep()
    try:
        with disk_errors("the command"):
            code = group.main(list(arguments), prog_name="fastserve", standalone_mode=False)
        return code if isinstance(code, int) else 0  # a command that raises Exit has its code returned here
    except FastServeError as error:
        return _failed(str(error), error.exit_code, arguments)
    except click.exceptions.Exit as request:
        return request.exit_code
    except click.ClickException as error:
        hint = error.ctx.get_usage() + "\n" if isinstance(error, click.UsageError) and error.ctx else ""
        return _failed(hint + error.format_message(), 2, arguments)
    except (KeyboardInterrupt, click.Abort):
        return _failed("stopped. An unfinished training run goes on when the same command is run again", 130, arguments)
    except BrokenPipeError:
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if device.ran_out(error):
            return _failed("out of memory: use a smaller train.batch, text.max_length or network", 1, arguments)
        traceback.print_exc()
        return _failed("this is a defect of FastServe; please report it with the lines above", 1, arguments)


def _failed(message: str, code: int, arguments: Sequence[str]) -> int:
    click.echo(f"error: {message}", err=True)
    if "--json" in arguments:
        click.echo(json.dumps({"error": message, "exit_code": code}, ensure_ascii=False))
    return code

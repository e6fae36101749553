"""Entry point: ``indis COMMAND`` or ``python -m indis COMMAND``.

Errors that a user can mend are one sentence on stderr and exit code 2; an interrupt is exit code 130. Anything else
is a bug and keeps its traceback.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated, Any

import tyro

from indis.cli.console import say
from indis.cli.demo import Demo
from indis.cli.evaluate import Evaluate
from indis.cli.fashion import FashionCommand
from indis.cli.fit import FitCommand
from indis.cli.report import Report
from indis.cli.sample import Sample
from indis.cli.teach import Teach
from indis.cli.toy import ToyCommand
from indis.cli.train_model import TrainModel

MENDABLE = (ValueError, OSError, FloatingPointError, ImportError)

Command = (
    Annotated[Teach, tyro.conf.subcommand("teach")]
    | Annotated[FitCommand, tyro.conf.subcommand("fit")]
    | Annotated[Sample, tyro.conf.subcommand("sample")]
    | Annotated[Evaluate, tyro.conf.subcommand("evaluate")]
    | Annotated[Report, tyro.conf.subcommand("report")]
    | Annotated[ToyCommand, tyro.conf.subcommand("toy")]
    | Annotated[FashionCommand, tyro.conf.subcommand("fashion")]
    | Annotated[Demo, tyro.conf.subcommand("demo")]
    | Annotated[TrainModel, tyro.conf.subcommand("train-model")]
)

DESCRIPTION = """Few-step diffusion and flow sampling with a discretization of its own for every sample.

The path of data: seeds -> teach -> endpoints -> fit -> artifact -> sample | evaluate -> report."""


def run(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return the exit code."""
    try:
        # A union of annotated dataclasses is what tyro takes; configs check themselves when they are built.
        command: Any = tyro.cli(Command, prog="indis", description=DESCRIPTION, args=arguments)
        command.run()
    except MENDABLE as error:
        say(f"indis: error: {_sentence(error)}")
        return 2
    except KeyboardInterrupt:
        say("indis: interrupted; what was finished is kept")
        return 130
    return 0


def main() -> None:
    """The console script."""
    sys.exit(run())


def _sentence(error: BaseException) -> str:
    """The error's own sentence; operating system errors say which file."""
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{error.filename}: {error.strerror}"
    return " ".join(str(error).split())

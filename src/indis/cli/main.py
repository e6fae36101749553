"""Entry point: ``indis COMMAND`` or ``python -m indis COMMAND``.

Errors that a user can mend are one sentence on stderr and exit code 2; an interrupt is exit code 130. Anything else
is a bug and keeps its traceback.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Union

import tyro

from indis import __version__
from indis.cli.budget import Budget
from indis.cli.compare import Compare
from indis.cli.console import WithModel, say
from indis.cli.demo import Demo
from indis.cli.evaluate import Evaluate
from indis.cli.fit import fit_command, spelled_out
from indis.cli.report import Report
from indis.cli.sample import Sample
from indis.cli.sight import Sight
from indis.cli.teach import Teach
from indis.cli.toy import ToyCommand
from indis.cli.train_model import TrainModel

MENDABLE = (ValueError, OSError, FloatingPointError, ImportError)

COMMANDS: dict[str, Callable[[Sequence[str]], Any]] = {
    "teach": lambda arguments: Teach,
    "fit": fit_command,
    "sample": lambda arguments: Sample,
    "evaluate": lambda arguments: Evaluate,
    "report": lambda arguments: Report,
    "toy": lambda arguments: ToyCommand,
    "budget": lambda arguments: Budget,
    "compare": lambda arguments: Compare,
    "sight": lambda arguments: Sight,
    "demo": lambda arguments: Demo,
    "train-model": lambda arguments: TrainModel,
}

DESCRIPTION = """Few-step diffusion and flow sampling with a discretization of its own for every sample.

The path of data: seeds -> teach -> endpoints -> fit -> artifact -> sample | evaluate -> report.

`indis --version` prints the version."""


def run(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return the exit code."""
    try:
        given = sys.argv[1:] if arguments is None else list(arguments)
        if given == ["--version"]:
            print(__version__)
            return 0
        given = spelled_out(given) if given[:1] == ["fit"] else given
        # Configs check themselves when they are built.
        command = tyro.cli(_union(given), prog="indis", description=DESCRIPTION, args=given)
        if isinstance(command, WithModel):
            _ = command.place  # refused before any work is done
        command.run()
    except MENDABLE as error:
        say(f"indis: error: {_sentence(error)}")
        return 2
    except KeyboardInterrupt:
        say("indis: interrupted; what was finished is kept")
        return 130
    return 0


def _union(arguments: Sequence[str]) -> Any:
    """All commands as the union that tyro takes; what `fit` accepts depends on the method."""
    kinds = [Annotated[choose(arguments), tyro.conf.subcommand(name)] for name, choose in COMMANDS.items()]
    return Union[tuple(kinds)]  # noqa: UP007  # built at run time


def main() -> None:
    """The console script."""
    sys.exit(run())


def _sentence(error: BaseException) -> str:
    """The error's own sentence; operating system errors say which file."""
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{error.filename}: {error.strerror}"
    return " ".join(str(error).split())

"""Entry point: ``indis COMMAND`` or ``python -m indis COMMAND``.

Errors that a user can mend are one sentence on stderr and exit code 2; an interrupt is exit code
130. Anything else is a bug and keeps its traceback.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import redirect_stderr
from io import StringIO
from traceback import walk_tb
from typing import Annotated, Any, Union

import tyro

from indis import __version__
from indis.cli.bench.budget import Budget
from indis.cli.bench.compare import Compare
from indis.cli.bench.demo import Demo
from indis.cli.bench.foresight import Sight
from indis.cli.bench.overhead import Overhead
from indis.cli.bench.report import Report
from indis.cli.bench.speed import Speed
from indis.cli.bench.toy import ToyCommand
from indis.cli.bench.train import TrainModel
from indis.cli.console import WithModel, say, tidied
from indis.cli.evaluate import Evaluate
from indis.cli.fit import FitCommand, fit_command, spelled_out
from indis.cli.refusals import explained, no_command
from indis.cli.sample import Sample
from indis.cli.teach import Teach

MENDABLE = (ValueError, OSError, FloatingPointError, ImportError)
# Those that go on where an interrupt stopped them, and the first file that they finish.
KEEPING = {
    Teach: "meta.json",
    FitCommand: "checkpoint.safetensors",
    Compare: "*/endpoints/meta.json",
    Demo: "toy.json",
    TrainModel: "checkpoint.safetensors",
}

NOTHING = "nothing is kept, it begins again"

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
    "overhead": lambda arguments: Overhead,
    "speed": lambda arguments: Speed,
    "demo": lambda arguments: Demo,
    "train-model": lambda arguments: TrainModel,
}

DESCRIPTION = """Few-step diffusion and flow sampling with a discretization of its own for every sample.

The path of data: seeds -> teach -> endpoints -> fit -> artifact -> sample | evaluate -> report.

`indis --version` prints the version."""


def run(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return the exit code."""
    command = None
    try:
        given = sys.argv[1:] if arguments is None else list(arguments)
        if given == ["--version"]:
            print(__version__)
            return 0
        given = spelled_out(given) if given[:1] == ["fit"] else given
        command = _parse(given)
        if isinstance(command, WithModel):
            _ = command.place  # refused before any work is done
        with tidied():
            command.run()
    except MENDABLE as error:
        say(f"indis: error: {_sentence(error)}")
        return 2
    except KeyboardInterrupt:
        say(f"indis: interrupted; {_kept(command)}")
        return 130
    return 0


def _parse(arguments: Sequence[str]) -> Any:
    """The command with its options. Configs check themselves when they are built.

    Raises:
        ValueError: what a config says, or which words no command knows; tyro would put either into
            a box, with a name
            of its own for a nested config.
        SystemExit: after the help.
    """
    shown = StringIO()
    try:
        with redirect_stderr(shown):
            command = tyro.cli(
                _union(arguments), prog="indis", description=DESCRIPTION, args=arguments
            )
    except SystemExit as stop:
        error = next((cause for cause in _causes(stop) if _is_ours(cause)), None)
        if error is not None:
            raise error from None
        if stop.code:
            raise ValueError(_unknown(arguments)) from None
        sys.stderr.write(shown.getvalue())
        raise
    sys.stderr.write(shown.getvalue())
    return command


def _unknown(arguments: Sequence[str]) -> str:
    """The sentence about words that no command knows."""
    if not arguments or arguments[0] not in COMMANDS:
        return no_command(arguments, COMMANDS)
    return explained(COMMANDS[arguments[0]](arguments), arguments[0], arguments[1:])


def _causes(error: BaseException) -> Iterator[BaseException]:
    """What led to an error, the latest first."""
    while error.__context__ is not None:
        error = error.__context__
        yield error


def _is_ours(error: BaseException) -> bool:
    """Was it raised by a module of this package?"""
    frames = [frame for frame, _ in walk_tb(error.__traceback__)]
    return isinstance(error, MENDABLE) and frames[-1].f_globals["__name__"].startswith("indis.")


def _union(arguments: Sequence[str]) -> Any:
    """All commands as the union that tyro takes; what `fit` accepts depends on the method."""
    kinds = [
        Annotated[choose(arguments), tyro.conf.subcommand(name)]
        for name, choose in COMMANDS.items()
    ]
    return Union[tuple(kinds)]  # noqa: UP007  # built at run time


def _kept(command: Any) -> str:
    """What an interrupted command leaves behind; the training of features has no checkpoint."""
    if getattr(command, "what", "denoiser") == "features":
        return NOTHING
    first = next((file for kind, file in KEEPING.items() if isinstance(command, kind)), None)
    if first is None:
        return NOTHING
    if not any(command.out.glob(first)):
        return "nothing was finished yet, it begins again"
    return "what was finished is kept, run it again to go on"


def main() -> None:
    """The console script."""
    sys.exit(run())


def _sentence(error: BaseException) -> str:
    """The error's own sentence; operating system errors say which file."""
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{error.filename}: {error.strerror}"
    return " ".join(str(error).split())

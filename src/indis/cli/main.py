"""Entry point: ``indis COMMAND`` or ``python -m indis COMMAND``.

Only the chosen command's module is imported, so help needs neither torch nor tyro. Syntax errors of
a command line are tyro's. Any other error that a user can mend is one sentence on stderr. Both exit
with code 2. An interrupt exits with code 130, SIGTERM with 143. Anything else is a bug and keeps
its traceback.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import redirect_stderr
from difflib import get_close_matches
from importlib import import_module
from io import StringIO
from traceback import walk_tb
from typing import Any

from indis import __version__
from indis.cli.bench import EXPERIMENTS
from indis.cli.signals import Terminated, asked_to_end

# Errors that a user can mend.
MENDABLE = (ValueError, OSError, FloatingPointError, ImportError)

# What each command does, and where it is.
COMMANDS = {
    "teach": ("Make teacher endpoints: what many steps make of each seed.", "teach:Teach"),
    "fit": ("Tune a sampler on teacher endpoints.", "fit:fit_command"),
    "sample": ("Draw samples with a fitted sampler or a plain solver.", "sample:Sample"),
    "evaluate": ("Measure how good a sampler's samples are.", "evaluate:Evaluate"),
    "plan": ("Print a sampler's timesteps, shifts and scales.", "plan:ShowPlan"),
    "export": ("Print a sampler's sigmas as other tools take them.", "export:Export"),
    "convert": ("Convert NVIDIA's EDM checkpoint, without running it.", "convert:Convert"),
    "upgrade": ("Convert an artifact of the previous format.", "upgrade:Upgrade"),
    "demo": ("Do all of this in a few minutes, with what ships.", "bench.demo:Demo"),
}
MOVED = {name: name for name in ("toy", "budget", "compare", "report", "overhead")} | {
    "sight": "foresight",
    "train-model": "train",
}

HEADER = """usage: indis COMMAND [OPTIONS]

Few-step diffusion and flow sampling, with timesteps fitted to every sample.
"""
FOOTER = """
  bench      Run an experiment; `indis bench` lists them.

`indis COMMAND --help` explains one, `indis --version` prints the version.

From seeds to samples:  teach -> endpoints -> fit -> artifact -> sample
A first picture:        indis sample --artifact fashion-nfe3 --out samples.png"""
BENCH_HEADER = """usage: indis bench EXPERIMENT [OPTIONS]

Whole experiments, most of which resume where they stopped.
"""
BENCH_FOOTER = """

`indis bench EXPERIMENT --help` explains one."""


def main() -> None:
    """Run the console script."""
    sys.exit(run())


def run(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        arguments: The words after ``indis``; those of this process by default.

    Returns:
        The exit code.

    Raises:
        SystemExit: After the help of a command, or a syntax error, which tyro has printed.
    """
    words = sys.argv[1:] if arguments is None else list(arguments)
    command = None
    try:
        if answer := _general(words):
            print(answer)
            return 0 if words else 2
        with asked_to_end():
            command = _parse(words)
            command.run()
    except MENDABLE as error:
        print(f"indis: error: {_sentence(error)}", file=sys.stderr)
        return 2
    except (MemoryError, RuntimeError) as error:
        if not _lacks_memory(error):
            raise
        print("indis: error: out of memory: take smaller sizes, --batch above all", file=sys.stderr)
        return 2
    except Terminated as stop:
        print(f"indis: asked to end; {_kept(command)}", file=sys.stderr)
        return 128 + stop.number
    except KeyboardInterrupt:
        print(f"indis: interrupted; {_kept(command)}", file=sys.stderr)
        return 130
    return 0


def _general(words: Sequence[str]) -> str | None:
    """Return the answer to a command line that names no command."""
    match words:
        case ["--version"]:
            return __version__
        case [] | ["-h" | "--help" | "help"]:
            return _page(HEADER, COMMANDS, FOOTER)
        case ["bench"] | ["bench", "-h" | "--help"]:
            return _page(BENCH_HEADER, EXPERIMENTS, BENCH_FOOTER)
    return None


def _page(header: str, commands: Mapping[str, tuple[str, str]], footer: str) -> str:
    rows = [f"  {name:10} {summary}" for name, (summary, _) in commands.items()]
    return "\n".join([header, *rows]) + footer


def _parse(words: Sequence[str]) -> Any:
    """Return the command that the words name, with its options.

    Raises:
        ValueError: If there is no such command, or a config refuses a value. tyro would put the
            config's sentence into a box.
    """
    bench = words[0] == "bench"
    name, *options = words[1:] if bench else words
    prog = f"indis bench {name}" if bench else f"indis {name}"
    place = _place(name, bench=bench)
    for option, word in zip(words, words[1:], strict=False):
        if not word or word.endswith("="):
            raise ValueError(f"{word.rstrip('=') or option} must not be followed by an empty value")

    module, _, attribute = place.partition(":")
    kind = getattr(import_module(f"indis.cli.{module}"), attribute)
    if not isinstance(kind, type):  # the options depend on others
        kind, options = kind(options)

    import tyro

    from indis.cli.help import named_below

    said = StringIO()
    try:
        with redirect_stderr(said):
            command = tyro.cli(
                kind,
                prog=prog,
                args=options,
                config=(tyro.conf.OmitArgPrefixes,),
            )
    except SystemExit as stop:
        for error in _causes(stop):
            if _is_own(error):
                raise error from None
        sys.stderr.write(said.getvalue())
        if not stop.code and (names := named_below(kind)):
            print(names)
        raise
    sys.stderr.write(said.getvalue())
    return command


def _place(name: str, *, bench: bool) -> str:
    """Return ``module:attribute`` of a command.

    Raises:
        ValueError: If there is none.
    """
    known = EXPERIMENTS if bench else COMMANDS
    if name in known:
        return known[name][1]
    if not bench and name in MOVED:
        raise ValueError(f"`indis {name}` is now `indis bench {MOVED[name]}`")
    kind = "experiment" if bench else "command"
    names = [*known] if bench else [*known, "bench"]
    alike = get_close_matches(name, names, 1, 0.75)
    hint = f": did you mean {alike[0]}?" if alike else ""
    raise ValueError(f"{kind} must be one of {', '.join(names)}, got {name!r}{hint}")


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield the errors that were being handled when this one was raised, latest first."""
    while error.__context__ is not None:
        error = error.__context__
        yield error


def _is_own(error: BaseException) -> bool:
    """Return whether a module of this package raised an error that a user can mend."""
    frames = [frame for frame, _ in walk_tb(error.__traceback__)]
    return isinstance(error, MENDABLE) and frames[-1].f_globals["__name__"].startswith("indis.")


def _lacks_memory(error: Exception) -> bool:
    """Return whether Python, torch on the CPU or torch on CUDA could not allocate memory."""
    plain = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    return plain or "DefaultCPUAllocator" in str(error)


def _kept(command: Any) -> str:
    """Say what an interrupted command leaves behind.

    A command that resumes says by a pattern, ``keeps``, which file it finishes first.
    """
    pattern = getattr(command, "keeps", None)
    if pattern is None:
        return "nothing is kept, it begins again"
    if not any(command.out.glob(pattern)):
        return "nothing was finished yet, it begins again"
    return "what was finished is kept, run it again to go on"


def _sentence(error: BaseException) -> str:
    """Return the error's own sentence; errors of the operating system say which file."""
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{error.filename}: {error.strerror}"
    return " ".join(str(error).split())

"""``indis bench speed``: how fast loop, networks, fits and commands are, against peers."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch

from indis.bench import efficiency, speed
from indis.bench.provenance import made_by
from indis.cli.console import JsonFile, emit, say, track
from indis.cli.paths import writable_file

Part = Literal["loop", "networks", "fit", "memory", "startup"]
PARTS: tuple[Part, ...] = get_args(Part)


@dataclass(frozen=True)
class Speed:
    """Time the loop, networks, a fit and the commands, as ratios within one run.

    Example: indis bench speed --parts loop

    Example: indis bench speed --json results/efficiency.json
    """

    parts: tuple[Part, ...] = PARTS
    """What is measured."""
    threads: int = 1
    """Number of threads that torch uses."""
    seconds: float = 2.0
    """How long each row is timed, at least; a fit ten times as long."""
    json: JsonFile = None
    """Write the measurements to this file."""

    def run(self) -> None:
        """Measure and print one line a row."""
        if self.threads < 1:
            raise ValueError(f"threads must be at least 1, got {self.threads}")
        if not self.seconds > 0:
            raise ValueError(f"seconds must be positive, got {self.seconds}")
        if not self.parts:
            raise ValueError(f"parts must be at least one of {', '.join(PARTS)}, got none")
        writable_file(self.json)
        torch.set_num_threads(self.threads)
        result: dict[str, Any] = {"threads": self.threads, **made_by()}
        for part in self.parts:
            result[part] = []
            for row in self._rows(part):
                say(LINES[part](row))
                result[part].append(row)
        emit(result, self.json)

    def _rows(self, part: Part) -> Iterable[dict[str, Any]]:
        if part == "loop":
            count = len(speed.CASES) * len(speed.PLANS)
            return track(speed.solver_rows(self.seconds), count, "loop")
        if part == "networks":
            return [speed.network_row(self.seconds)]
        if part == "fit":
            return [efficiency.fit_row(10 * self.seconds)]
        return efficiency.memory_rows() if part == "memory" else efficiency.startup_rows()


def solver_line(row: dict[str, Any]) -> str:
    """Format a row of the solvers' table as one line."""
    size = f"{tuple(row['shape'])} x {row['batch']}"
    return (
        f"{size:20} {row['solver']:8} {row['plan']:10} {row['ratio']:5.2f} "
        f"({row['low']:.2f} to {row['high']:.2f}, goal {row['goal']:g})  "
        f"{1e6 * row['ours']:8.0f} against {1e6 * row['theirs']:8.0f} us"
    )


def network_line(row: dict[str, Any]) -> str:
    """Format the row of the networks as one line."""
    return (
        f"{row['network']} {row['parameters'] / 1e6:.1f} million parameters against "
        f"{row['against']} {row['their_parameters'] / 1e6:.1f} million, batch {row['batch']}: "
        f"{row['ratio']:.2f} ({row['low']:.2f} to {row['high']:.2f})  "
        f"{1e3 * row['ours']:.0f} against {1e3 * row['theirs']:.0f} ms"
    )


def fit_line(row: dict[str, Any]) -> str:
    """Format the row of a fit as one line."""
    return (
        f"fit of {row['steps']} steps on {row['model']}: {row['ratio']:.2f} of the plain loop's "
        f"throughput ({row['low']:.2f} to {row['high']:.2f}, goal {row['goal']:g})  "
        f"{row['ours']:.1f} against {row['theirs']:.1f} samples/s"
    )


def memory_line(row: dict[str, Any]) -> str:
    """Format a row of peak memory as one line."""
    how = "with" if row["recompute"] else "without"
    low, high = row["steps"]
    return (
        f"peak memory of a fit {how} recompute: {row['low_mb']:.0f} MB at N = {low}, "
        f"{row['high_mb']:.0f} MB at N = {high}, ratio {row['ratio']:.2f}"
    )


def startup_line(row: dict[str, Any]) -> str:
    """Format a row of start-up times as one line."""
    return f"{row['what']}: {row['seconds']:.2f} s"


LINES: dict[Part, Callable[[dict[str, Any]], str]] = {
    "loop": solver_line,
    "networks": network_line,
    "fit": fit_line,
    "memory": memory_line,
    "startup": startup_line,
}

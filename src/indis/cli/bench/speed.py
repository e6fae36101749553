"""``indis bench speed``: how fast the loop is, against diffusers' schedulers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from indis.bench import speed
from indis.cli.console import JsonFile, emit, say, track
from indis.cli.paths import writable_file


@dataclass(frozen=True)
class Speed:
    """Time the sampling loop against diffusers' schedulers, as ratios within one run.

    Example: indis bench speed --json results/efficiency.json
    """

    threads: int = 1
    """Number of threads that torch uses."""
    seconds: float = 2.0
    """How long each row is timed, at least."""
    networks: bool = False
    """Time EDM's network against diffusers' U-Net of the same size in place of the loop."""
    json: JsonFile = None
    """Write the measurements to this file."""

    def run(self) -> None:
        """Measure and print one line a row."""
        if self.threads < 1:
            raise ValueError(f"threads must be at least 1, got {self.threads}")
        if not self.seconds > 0:
            raise ValueError(f"seconds must be positive, got {self.seconds}")
        writable_file(self.json)
        torch.set_num_threads(self.threads)
        if self.networks:
            row = speed.network_row(self.seconds)
            say(network_line(row))
            emit({"threads": self.threads, "networks": [row]}, self.json)
            return
        count = len(speed.CASES) * len(speed.PLANS)
        rows = []
        for row in track(speed.solver_rows(self.seconds), count, "solvers"):
            say(solver_line(row))
            rows.append(row)
        emit({"threads": self.threads, "solvers": rows}, self.json)


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

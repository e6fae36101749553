"""Several beginnings of one fit: which optimum a fit falls into is chance, and shows early."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from indis.storage import load_checkpoint, save_tensors, section
from indis.tuning import Fit, Progress, Tuning, require_same

TRIAL = 0.25  # of the iterations; on the image bench optima are apart by then


class Starts(Tuning):
    """Several beginnings of one fit: which optimum a fit falls into is chance, and shows early.

    Each run works for the part :data:`TRIAL` of its iterations; then the one with the best held-out
    loss goes on as if it had been alone.

    Raises:
        ValueError: if the runs are not descents that a seed changes.
    """

    def __init__(self, runs: Sequence[Tuning]) -> None:
        self.runs = [run for run in runs if isinstance(run, Fit)]
        if len(self.runs) < len(runs):
            raise ValueError(
                f"starts must be 1 for what is computed once, with no seed to change, got {len(runs)}"
            )
        first = self.runs[0]
        self.sampler, self.denoiser, self.loss = first.sampler, first.denoiser, first.loss
        self.train, self.heldout, self.config = first.train, first.heldout, first.config
        self.step, self.best = 0, math.inf
        self.trial = math.ceil(TRIAL * self.config.iterations)

    @property
    def untuned(self) -> float:
        """The held-out loss at the start, of the first beginning."""
        return self.runs[0].untuned

    @property
    def iterations(self) -> int:
        """Of all trials, and of the rest of one run."""
        return self.config.iterations + self.trial * (len(self.runs) - 1)

    def run(self) -> Iterator[Progress]:
        """All trials, then the rest of the best one.

        Raises:
            FloatingPointError: if a run's loss or gradient stops being finite.
        """
        for run in self.runs:
            if run.step <= self.trial:
                states = run.run()
                while run.step < self.trial:
                    yield self._told(next(states))
                run.judge()
        chosen = min(self.runs, key=lambda run: run.best)
        self.sampler = chosen.sampler
        for state in chosen.run():
            yield self._told(state)
        self.best = chosen.best

    def finish(self) -> None:
        """Take the best run so far, with its best parameters."""
        chosen = min(self.runs, key=lambda run: run.best)
        chosen.finish()
        self.sampler = chosen.sampler

    def save(self, path: Path, meta: Any = None) -> None:
        """Write a checkpoint of all runs that :meth:`resume` continues from, bit for bit."""
        states = [run._state() for run in self.runs]
        tensors = {
            f"{i}.{name}": value
            for i, (parts, _) in enumerate(states)
            for name, value in parts.items()
        }
        save_tensors(
            path,
            tensors,
            {"config": self._identity(), "meta": meta, "runs": [n for _, n in states]},
        )

    def resume(self, path: Path, meta: Any = None) -> None:
        """Continue from a checkpoint of the same configuration (``meta`` included).

        Raises:
            ValueError: if it belongs to another one, or is no checkpoint.
        """
        tensors, header = load_checkpoint(path, "config", "meta", "runs")
        require_same(path, header, self._identity(), meta)
        for i, run in enumerate(self.runs):
            run._restore(section(tensors, f"{i}."), header["runs"][i])
        self.step = sum(run.step for run in self.runs)

    def _told(self, state: Progress) -> Progress:
        """A run's progress in the numbers of all."""
        self.step, self.best = (
            sum(run.step for run in self.runs),
            min(run.best for run in self.runs),
        )
        return replace(state, step=self.step, iterations=self.iterations, best=self.best)

    def _identity(self) -> dict[str, Any]:
        return {str(i): run._identity() for i, run in enumerate(self.runs)}

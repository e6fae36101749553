"""``indis evaluate``: numbers for a sampler."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from indis import artifact, models
from indis.bench.budget import BudgetSampler
from indis.cli.console import JsonFile, bar, default, emit, say
from indis.cli.model import check_loss
from indis.cli.paths import writable_file
from indis.cli.sampler import SamplerChoice, found
from indis.denoise import Counted, Denoiser
from indis.endpoints import check_seeds, load_endpoints
from indis.evaluate import Draw, Row, counted_nfe, frechet_of_seeds, score_pairs
from indis.models.fashion_features import frechet_judge
from indis.sampler import Sampler


@dataclass(frozen=True)
class Evaluate(SamplerChoice):
    """Measure how good a sampler's samples are.

    They are compared with held-out endpoints, whose seeds no fit has seen.

    Their Frechet distance to the data is measured with --samples.

    nfe counts evaluations one after another, calls counts all of them.

    Example: indis evaluate --artifact runs/n3 --heldout runs/test --samples 10000
    """

    heldout: Annotated[Path | None, default("none", "FOLDER")] = None
    """Folder of endpoints to judge by, which `indis teach` wrote from other seeds."""
    samples: int = 0
    """Number of samples for the Frechet distance (FD-Fashion); 0 leaves it out."""
    first_seed: int = 1_000_000
    """Seed of the first of those samples. The others follow one by one."""
    loss: str = "fashion"
    """Loss to the held-out endpoints."""
    features: Annotated[Path | None, default("the one that ships", "FOLDER")] = None
    """Feature network for FD-Fashion and the loss, of `indis bench train --what features`."""
    json: JsonFile = None
    """Write the row. `indis bench report` reads a file called results.json."""

    def run(self) -> None:
        """Evaluate and print one row."""
        self._check()
        # An unknown loss is refused even if there is nothing to judge by it.
        judged = self.heldout is not None or self.loss not in models.loss_names()
        loss = models.loss(self.loss, self.features) if judged else None
        data, meta = load_endpoints(self.heldout) if self.heldout else (None, None)
        if data is not None and self.artifact is not None:
            artifact.check_unseen(found(self.artifact), data.seeds)
        if meta:
            denoiser = self.load_taught(meta, self.heldout, self.model)
        else:
            denoiser = self.load_model(self.model_spec)
        if data is not None and loss is not None:
            check_loss(self.loss, loss, denoiser, data)
        sampler = self.build(denoiser)
        counter = Counted(denoiser)
        row: Row = {"model": denoiser.name} | self._sampler_columns(sampler)
        if isinstance(sampler, Sampler):
            row |= {"nfe": sampler.depth, "calls": counted_nfe(denoiser, sampler)}
        if data is not None and loss is not None:
            row |= score_pairs(counter, sampler, data, loss).row()
        if self.samples:
            row |= {"fd": self._frechet(counter, sampler), "samples": self.samples}
        if isinstance(sampler, BudgetSampler):
            # Each sample has its own number, so this is the mean over all that were drawn.
            row["nfe"] = row["calls"] = counter.samples / (row.get("pairs", 0) + self.samples)
        for name, value in row.items():
            say(f"{name:14} {value:.5f}" if isinstance(value, float) else f"{name:14} {value}")
        emit({"rows": [row | self._settings()]}, self.json)

    def _sampler_columns(self, sampler: Draw) -> Row:
        """Return what a comparison's rows say of a sampler: its method, steps, seed and size."""
        if self.artifact is None:
            plain = self.plain
            return {
                "method": plain["grid"],
                "steps": plain["steps"],
                "afs": self.afs,
                "seed": None,
                "parameters": 0,
            }
        made = artifact.load_config(found(self.artifact)).get("provenance")
        made = made if isinstance(made, dict) else {}  # a script need not say
        config = made.get("config") or {}
        row = {
            "method": made.get("method") or found(self.artifact).name,
            "seed": (config.get("recipe") or {}).get("seed"),
            "parameters": made.get("parameters"),
        }
        if isinstance(sampler, Sampler):
            steps = sampler.policy.steps
            whole = steps if len(sampler.policy.counts) > 1 else config.get("steps", steps)
            row |= {"steps": whole, "afs": sampler.analytic_first}
        return row

    def _settings(self) -> Row:
        """Return the sampler, and what it was measured by."""
        which = (
            {"artifact": str(self.artifact)} if self.artifact else {"artifact": None, **self.plain}
        )
        paths = {"heldout": self.heldout, "features": self.features}
        judges = {name: None if path is None else str(path) for name, path in paths.items()}
        loss = {"loss": self.loss if self.heldout else None, "first_seed": self.first_seed}
        return which | judges | loss

    def _check(self) -> None:
        if self.samples < 0 or self.samples == 1:
            raise ValueError(f"samples must be 0 or at least 2, got {self.samples}")
        if self.heldout is None and not self.samples:
            raise ValueError("nothing to do: give --heldout, or --samples of at least 2")
        check_seeds(self.first_seed, self.samples)
        writable_file(self.json)

    def _frechet(self, denoiser: Denoiser, sampler: Draw) -> float:
        seeds = range(self.first_seed, self.first_seed + self.samples)
        extract, reference = frechet_judge(self.features)
        with bar() as progress:
            task = progress.add_task("FD-Fashion", total=self.samples)
            return frechet_of_seeds(
                denoiser,
                sampler,
                seeds,
                extract,
                reference,
                on_batch=lambda n: progress.update(task, completed=n),
            )

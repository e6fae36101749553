"""``indis evaluate``: numbers for a sampler."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from indis import artifact, models
from indis.bench.budget import BudgetSampler
from indis.cli.console import bar, check_loss, emit, say, writable_file
from indis.cli.sample import SamplerChoice, found
from indis.denoise import Counted, Denoiser
from indis.endpoints import check_seeds, load_endpoints
from indis.evaluate import Draw, Row, counted_nfe, frechet_of_seeds, score_pairs
from indis.models.fashion_features import frechet_judge
from indis.policies import AnySteps
from indis.sampler import Sampler


@dataclass(frozen=True)
class Evaluate(SamplerChoice):
    """Judge an artifact or a plain solver: distance to held-out teacher endpoints, Frechet distance
    to the data.

    As in `indis compare`, nfe counts the evaluations that come one after another and calls counts
    all.

    The held-out endpoints must be other seeds than those of the fit; an artifact that records its
    seeds is checked.

    Example: indis evaluate --artifact runs/indis-n3 --heldout runs/test --samples 10000 --json runs/n3/results.json

    `indis report --run runs/n3` then makes a page of it.
    """

    heldout: Path | None = None
    """Folder of endpoints to judge by, which `indis teach` wrote from other seeds than those of the
    fit."""
    model: str = "fashion"
    """Model: toy, toy:AB, fashion, or fashion:PATH with the folder of `indis train-model` or a file
    of weights; ignored
    if --heldout is given, which knows its own."""
    samples: int = 0
    """How many samples are drawn for FD-Fashion; 0 leaves it out."""
    first_seed: int = 1_000_000
    """Seed of the first of those samples; the others follow one by one."""
    loss: str = "fashion"
    """Loss that is reported on the held-out endpoints: mse, squared, fashion, fashion-dists,
    lpips."""
    features: Path | None = None
    """Folder of the feature network (`indis train-model --what features`) for FD-Fashion and the
    loss, a judge that no
    fit has seen; the one that ships if absent."""
    json: Path | None = None
    """Write the row to this file, as `indis compare` does and `indis report` reads it if it is
    called results.json."""

    def run(self) -> None:
        """Evaluate and print one row."""
        self._check_samples()
        writable_file(self.json)
        asked = (
            self.heldout is not None or self.loss not in models.loss_names()
        )  # an unknown one is refused in any case
        loss = models.loss(self.loss, self.features) if asked else None
        data, meta = load_endpoints(self.heldout) if self.heldout else (None, None)
        if data is not None and self.artifact is not None:
            artifact.check_unseen(found(self.artifact), data.seeds)
        denoiser = self.load_taught(meta, self.heldout) if meta else self.load_model(self.model)
        if data is not None and loss is not None:
            check_loss(self.loss, loss, denoiser, data)
        sampler = self.build(denoiser)
        counter = Counted(denoiser)
        row: Row = {"model": denoiser.name} | self._who(sampler)
        if isinstance(sampler, Sampler):
            row |= {"nfe": sampler.depth, "calls": counted_nfe(denoiser, sampler)}
        if data is not None and loss is not None:
            row |= score_pairs(counter, sampler, data, loss).row()
        if self.samples:
            row |= {"fd": self._frechet(counter, sampler), "samples": self.samples}
        if isinstance(
            sampler, BudgetSampler
        ):  # each sample its own, so the mean over all that were drawn
            row["nfe"] = row["calls"] = counter.samples / (row.get("pairs", 0) + self.samples)
        for name, value in row.items():
            say(f"{name:14} {value:.5f}" if isinstance(value, float) else f"{name:14} {value}")
        emit({"rows": [row | self._asked()]}, self.json)

    def _who(self, sampler: Draw) -> Row:
        """What a comparison's rows say of a sampler: who made it, of how many whole steps, from
        which seed.
        """
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
        made = made if isinstance(made, dict) else {}  # what a script wrote need not say
        config = made.get("config") or {}
        row = {
            "method": made.get("method") or found(self.artifact).name,
            "seed": (config.get("recipe") or {}).get("seed"),
            "parameters": made.get("parameters"),
        }
        if isinstance(sampler, Sampler):
            steps = sampler.policy.steps
            whole = steps if isinstance(sampler.policy, AnySteps) else config.get("steps", steps)
            row |= {"steps": whole, "afs": sampler.analytic_first}
        return row

    def _asked(self) -> Row:
        """What the numbers are of: the sampler, and what they were measured by."""
        which = (
            {"artifact": str(self.artifact)} if self.artifact else {"artifact": None, **self.plain}
        )
        paths = {"heldout": self.heldout, "features": self.features}
        judges = {name: None if path is None else str(path) for name, path in paths.items()}
        return (
            which
            | judges
            | {"loss": self.loss if self.heldout else None, "first_seed": self.first_seed}
        )

    def _check_samples(self) -> None:
        if self.samples < 0 or self.samples == 1:
            raise ValueError(f"samples must be 0 or at least 2, got {self.samples}")
        if self.heldout is None and not self.samples:
            raise ValueError("nothing to do: give --heldout, or --samples of at least 2")
        check_seeds(self.first_seed, self.samples)

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

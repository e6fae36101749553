r"""The toy study (paper, sec. 4.1, Figs. 2 and 3): how much can a plan of its own give each sample?

The denoiser is the exact posterior mean of a 2-D tree of Gaussians, so every error is the solver's.
The student is Euler in flow time with N steps, the target is Euler with 100 steps from the same
prior, both ends of the time axis are fixed. Four policies share the same freedoms and the same
loss, the squared distance (a sum over both coordinates) to the target:

* ``uniform``: equal steps in time, nothing learned;
* ``global``: one plan for all, learned on the training priors to convergence;
* ``instance``: phi(x_T), learned on the training priors, also judged on held-out priors;
* ``oracle``: each training prior's own plan, overfitted from phi's; a bound, not a method.

Freedoms are ``tau``, ``tau+dtau`` and ``tau+dtau+gamma``. Against the true distribution, KL and the
1-Wasserstein distance are estimated from the end points; each comes with its floor, the value that
exact samples of the same size get.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from indis.checks import require_least
from indis.endpoints import Endpoints, endpoint_batches, gather
from indis.losses import squared_distance
from indis.methods import INDIS, heuristic
from indis.models.toy import load
from indis.policies import LearnedPolicy
from indis.recipe import Recipe
from indis.sampler import Sampler
from indis.tuning import Fit

FREEDOMS: dict[str, dict[str, Any]] = {
    "tau": {"dtau": 0.0, "gamma": 0.0},
    "tau+dtau": {"gamma": 0.0},
    "tau+dtau+gamma": {},
}
TEACHER_STEPS = 100


@dataclass(frozen=True)
class ToyConfig:
    """The size of the study. The defaults are the full one, under 15 minutes on two cores."""

    classes: str = "A"
    """Classes of the tree: A, or AB for both."""
    tree_seed: int = 2
    """Seed of the tree, which is a mixture of Gaussians."""
    priors: int = 20_000
    """Number of starting noises in each split, as in the paper."""
    steps: tuple[int, ...] = tuple(range(3, 11))
    """Numbers of Euler steps, as in the paper's Fig. 3."""
    freedoms: tuple[str, ...] = tuple(FREEDOMS)
    """Sets of what a plan may choose."""
    dtau: float = 0.9
    """Largest time shift, a part of the interval that follows. Ours."""
    gamma: float = 0.9
    """Largest change of the output scale. Ours."""
    global_iterations: int = 500
    """Number of iterations of the global plan's fit."""
    global_batch: int = 256
    """Number of priors in an iteration of the global plan's fit."""
    instance_iterations: int = 400
    """Number of iterations of phi's fit."""
    instance_batch: int = 512
    """Number of priors in an iteration of phi's fit."""
    lr: float = 0.3
    """Learning rate of both fits; 0.1 and 1 were worse."""
    probes: int = 2000
    """Priors that measure how sensitive each logit is; errors are heavy-tailed, so many."""
    width: int = 96
    """Width of phi's hidden layers."""
    depth: int = 3
    """Number of phi's hidden layers."""
    oracle_iterations: int = 8
    """Number of iterations of the fit of each prior's own plan."""
    oracle_lr: float = 0.1
    """Learning rate of the fit of each prior's own plan."""
    reference: int = 200_000
    """Number of true samples that KL and W1 are measured against."""
    seed: int = 0
    """Seed of the fits and of the true samples."""

    def __post_init__(self) -> None:
        unknown = set(self.freedoms) - set(FREEDOMS)
        if unknown:
            raise ValueError(
                f"freedoms must be among {', '.join(FREEDOMS)}, got {', '.join(sorted(unknown))}"
            )
        if not self.steps or min(self.steps) < 1:
            raise ValueError(f"steps must be at least 1, got {self.steps}")
        require_least(
            self, priors=2, reference=1, width=1, depth=1, oracle_iterations=1, tree_seed=0, seed=0
        )

    def quick(self) -> ToyConfig:
        """A size for a demonstration; what was set already stays."""
        small: dict[str, Any] = {
            "priors": 4000,
            "steps": (3, 5),
            "global_iterations": 200,
            "instance_iterations": 200,
            "reference": 50_000,
        }
        usual = ToyConfig()
        return replace(
            self,
            **{name: v for name, v in small.items() if getattr(self, name) == getattr(usual, name)},
        )


@dataclass(frozen=True)
class Cell:
    """One row of the result; ``squared_distance`` sums both coordinates, KL is in nats, W1 in data
    units.
    """

    policy: str
    freedoms: str
    steps: int
    nfe: int
    split: str
    squared_distance: float
    kl: float
    kl_floor: float
    w1: float
    w1_floor: float
    priors: int
    classes: str
    tree_seed: int
    seed: int
    parameters: int
    fit_seconds: float


@dataclass(frozen=True)
class ToyProgress:
    """What is going on: the cell in work, how many are done, and a new row when one is finished."""

    doing: str
    done: int
    total: int
    cell: Cell | None = None


class ToyStudy:
    """Runs the study; iterate :meth:`run`, then read ``cells`` and ``scatter``."""

    def __init__(self, config: ToyConfig) -> None:
        self.config = config
        self.toy = load(config.classes, config.tree_seed)
        self.cells: list[Cell] = []
        # Euler-3 errors over a split's priors, "<policy> <freedoms> <split>" for every set of
        # freedoms that was run; of them Fig. 2 shows the smallest and the largest.
        self.scatter: dict[str, Tensor] = {}
        self._done = 0

    @property
    def total(self) -> int:
        """How many samplers are fitted or run."""
        return len(self.config.steps) * (1 + 3 * len(self.config.freedoms))

    def run(self, workers: int = 1) -> Iterator[ToyProgress]:
        """Fit and judge every policy, freedom and number of steps; ``workers`` processes share out
        the latter.

        Raises:
            ValueError: if there is to be no worker.
        """
        if workers < 1:
            raise ValueError(f"workers must be at least 1, got {workers}")
        yield ToyProgress("teacher endpoints", 0, self.total)
        self.data, self.truth, self.floor = _grounds(replace(self.config, steps=(1,)))
        yield from self._run_here() if workers == 1 else self._run_side_by_side(workers)

    def _run_here(self) -> Iterator[ToyProgress]:
        for steps in self.config.steps:
            yield from self._judge(
                "uniform", "tau", steps, self._uniform(steps), ("train", "heldout"), 0.0
            )
            for freedoms in self.config.freedoms:
                yield from self._run_freedoms(freedoms, steps)

    def _run_side_by_side(self, workers: int) -> Iterator[ToyProgress]:
        """A process for each number of steps, the longest first; cells are in the same order as
        from one process.
        """
        parts: dict[int, list[Cell]] = {}
        spawn = multiprocessing.get_context("spawn")  # a forked torch may hang in its thread pool
        with ProcessPoolExecutor(workers, spawn, torch.set_num_threads, (1,)) as pool:
            order = sorted(self.config.steps, reverse=True)
            futures = {pool.submit(_part, replace(self.config, steps=(n,))): n for n in order}
            try:
                for future in as_completed(futures):
                    parts[futures[future]], scatter = future.result()
                    self.scatter |= {
                        name: torch.from_numpy(errors) for name, errors in scatter.items()
                    }
                    self._done += self.total // len(order)
                    yield ToyProgress(f"N={futures[future]} done", self._done, self.total)
            finally:
                pool.shutdown(cancel_futures=True)
        self.cells = [cell for n in self.config.steps for cell in parts[n]]

    def results(self) -> dict[str, Any]:
        """Everything as JSON: the configuration and the flat list of cells."""
        return {
            "study": "toy",
            "config": asdict(self.config),
            "units": {
                "squared_distance": "sum over 2 coordinates, data std 0.5 per coordinate over "
                "both classes",
                "kl": "nats, KL(data || samples) on a 48 x 48 histogram",
                "w1": "data units",
                "fixed": "both ends of time; teacher Euler with 100 steps",
            },
            "cells": [asdict(cell) for cell in self.cells],
        }

    def _run_freedoms(self, freedoms: str, steps: int) -> Iterator[ToyProgress]:
        both = ("train", "heldout")
        for policy, build in (("global", self._global), ("instance", self._instance)):
            yield ToyProgress(f"{policy} {freedoms} N={steps}", self._done, self.total)
            started = time.perf_counter()
            sampler = build(freedoms, steps)
            yield from self._judge(
                policy, freedoms, steps, sampler, both, time.perf_counter() - started
            )
        yield ToyProgress(f"oracle {freedoms} N={steps}", self._done, self.total)
        started = time.perf_counter()
        oracle = self._oracle(sampler, freedoms, steps)
        yield from self._judge(
            "oracle", freedoms, steps, oracle, ("train",), time.perf_counter() - started
        )

    def _uniform(self, steps: int) -> Sampler:
        return heuristic(self.toy, solver="euler", grid="uniform", steps=steps)

    def _config(self, freedoms: str, steps: int, fitting: Recipe, *, per_instance: bool) -> INDIS:
        c = self.config
        sizes: dict[str, Any] = {"dtau": c.dtau, "gamma": c.gamma} | FREEDOMS[freedoms]
        return INDIS(
            steps=steps,
            solver="euler",
            grid="uniform",
            reads="noise" if per_instance else "nothing",
            loss="squared",
            width=c.width,
            depth=c.depth,
            recipe=replace(fitting, probes=min(c.probes, c.priors)),
            **sizes,
        )

    def _fit(self, config: INDIS) -> Sampler:
        process = config.tuning(self.toy, self.data["train"], squared_distance)
        for _ in process.run():
            pass
        return process.sampler

    def _global(self, freedoms: str, steps: int) -> Sampler:
        c = self.config
        fitting = Recipe(c.global_iterations, c.global_batch, c.lr, holdout=0, seed=c.seed)
        return self._fit(self._config(freedoms, steps, fitting, per_instance=False))

    def _instance(self, freedoms: str, steps: int) -> Sampler:
        c = self.config
        fitting = Recipe(c.instance_iterations, c.instance_batch, c.lr, holdout=0, seed=c.seed)
        return self._fit(self._config(freedoms, steps, fitting, per_instance=True))

    def _oracle(self, learned: Sampler, freedoms: str, steps: int) -> Sampler:
        """Each training prior's own logits, started at phi's answer; the better of before and
        after, prior by prior.
        """
        c, data = self.config, self.data["train"]
        policy = learned.policy
        if not isinstance(policy, LearnedPolicy) or policy.encoder is None:
            raise TypeError(f"learned must have a phi, got {type(policy).__name__}")
        oracle = policy.for_samples(len(data))
        scale, table = oracle.logits.scale, oracle.logits.table
        scale.copy_(policy.logits.scale)
        with torch.no_grad():
            start = policy.logits(policy.encoder(data.noise)) / scale
        table.data.copy_(start)
        sampler = Sampler(oracle, learned.solver)
        fitting = Recipe(
            c.oracle_iterations, len(data), c.oracle_lr, clip=1e12, holdout=0, seed=c.seed
        )

        def total(student: Tensor, teacher: Tensor) -> Tensor:
            """Each prior's share of the mean would be small enough for Adam's epsilon to slow it
            down.
            """
            return len(data) * squared_distance(student, teacher)

        for _ in Fit(sampler, self.toy, data, total, fitting).run():
            pass
        found = table.detach().clone()
        after = self._errors(sampler, data)
        table.data.copy_(start)
        before = self._errors(sampler, data)
        table.data.copy_(torch.where((after < before)[:, None, None], found, start))
        return sampler

    def _errors(self, sampler: Sampler, data: Endpoints) -> Tensor:
        with torch.no_grad():
            return squared_distance(sampler(self.toy, data.noise), data.target)

    def _judge(
        self,
        policy: str,
        freedoms: str,
        steps: int,
        sampler: Sampler,
        splits: Sequence[str],
        seconds: float,
    ) -> Iterator[ToyProgress]:
        self._done += 1
        for split in splits:
            data = self.data[split]
            with torch.no_grad():
                end = sampler(self.toy, data.noise)
            errors = squared_distance(end, data.target)
            if steps == 3:
                self.scatter[f"{policy} {freedoms} {split}"] = errors
            cell = self._cell(policy, freedoms, steps, split, sampler, end, errors, seconds)
            self.cells.append(cell)
            yield ToyProgress(f"{policy} {freedoms} N={steps}", self._done, self.total, cell)

    def _cell(
        self,
        policy: str,
        freedoms: str,
        steps: int,
        split: str,
        sampler: Sampler,
        end: Tensor,
        errors: Tensor,
        seconds: float,
    ) -> Cell:
        c = self.config
        kl, w1 = _distances(end, self.truth)
        return Cell(
            policy=policy,
            freedoms=freedoms,
            steps=steps,
            nfe=sampler.nfe,
            split=split,
            squared_distance=errors.double().mean().item(),
            kl=kl,
            kl_floor=self.floor[0],
            w1=w1,
            w1_floor=self.floor[1],
            priors=len(end),
            classes=c.classes,
            tree_seed=c.tree_seed,
            seed=c.seed,
            parameters=sampler.policy.parameter_count(),
            fit_seconds=round(seconds, 2),
        )


@lru_cache(maxsize=1)
def _grounds(config: ToyConfig) -> tuple[dict[str, Endpoints], Tensor, tuple[float, float]]:
    """What every number of steps shares: endpoints by split, true samples, and the distances of
    exact samples.
    """
    toy, c = load(config.classes, config.tree_seed), config
    teacher = heuristic(toy, solver="euler", grid="uniform", steps=TEACHER_STEPS)
    everything = gather(endpoint_batches(toy, teacher, range(2 * c.priors), batch=4096))
    generator = torch.Generator().manual_seed(c.seed)
    truth = toy.mixture.sample(c.reference, generator).float()
    floor = _distances(toy.mixture.sample(c.priors, generator).float(), truth)
    return {"train": everything[: c.priors], "heldout": everything[c.priors :]}, truth, floor


def _part(config: ToyConfig) -> tuple[list[Cell], dict[str, Any]]:
    """One process's share: cells, and scatter as arrays, which need no shared memory on their way
    back.
    """
    study = ToyStudy(config)
    for _ in study.run():
        pass
    return study.cells, {name: errors.numpy() for name, errors in study.scatter.items()}


def _distances(samples: Tensor, truth: Tensor) -> tuple[float, float]:
    from indis.bench.toy_metrics import histogram_kl, wasserstein1

    return histogram_kl(samples, truth), wasserstein1(samples, truth)

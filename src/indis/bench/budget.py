"""Instance-aware budgets: a sample gets the number of steps that *it* needs. Beyond the paper.

One phi serves every N (:mod:`indis.policies.any_steps`); a second small network foresees a sample's
loss at each N. With a price per evaluation, sample i takes

    N_i = argmin_N  E[loss_i(N)] + price * NFE(N)

which is the cheapest way to the lowest mean loss at whatever mean number of evaluations the price
leads to. NFE(N) is what N steps cost: one less with an analytic first step, about twice as many
with Heun. The price is set once, on end points, for the mean that is asked for; a sample's N then
depends on nothing but the sample.

    measure   the losses of some end points at every N
    foresee   fit the predictor to them
    price     find the price for a mean number of evaluations
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from indis import artifact
from indis.bench.error_predictor import ErrorPredictor, deviance
from indis.checks import require_least, require_memory
from indis.denoise import UNCONDITIONAL, Condition, Denoiser
from indis.endpoints import Endpoints
from indis.evaluate import losses_of_pairs
from indis.losses import Loss
from indis.numerics import seeded
from indis.policies import LearnedPolicy
from indis.recipe import descend
from indis.sampler import Sampler
from indis.sealed import SizedBy, load_record, save_record
from indis.storage import DamagedFileError, checksum, exactly, load_tensors, malformed, save_tensors
from indis.tuning import copied_state

FORMAT = 1
PREDICTOR = ("counts", "shape", "condition_dim", "width", "depth")
FILE, WEIGHTS = artifact.BUDGET, "budget.safetensors"
BOUND = ("config.json", WEIGHTS)  # the weights of the policy are bound by config.json


@dataclass(frozen=True)
class BudgetConfig:
    """How the predictor is fitted. Measuring costs all evaluations of all N for every end point;
    fitting is cheap.

    Raises:
        ValueError: for a number outside its range.
    """

    iterations: int = 4000
    """Number of the optimizer's steps."""
    batch: int = 1024
    """Number of endpoints in an iteration."""
    lr: float = 3e-3
    """Learning rate of Adam."""
    holdout: float = 0.1
    """Part of the endpoints that only chooses the best state."""
    width: int = 128
    """Width of the hidden layers."""
    depth: int = 3
    """Number of hidden layers."""
    seed: int = 0
    """Seed of the initial weights and the batches."""

    def __post_init__(self) -> None:
        require_least(self, iterations=1, batch=1, width=1, depth=1, seed=0)
        require_memory("width", self.width, 16 * self.depth, power=2)
        require_memory("batch", self.batch, 64)
        if not self.lr > 0:
            raise ValueError(f"lr must be positive, got {self.lr}")
        if not 0 < self.holdout < 1:
            raise ValueError(f"holdout must be in (0, 1), got {self.holdout}")


def any_steps(sampler: Sampler) -> LearnedPolicy:
    """The policy of a sampler for every N.

    Raises:
        ValueError: if it is another kind of sampler.
    """
    if not isinstance(sampler.policy, LearnedPolicy) or len(sampler.policy.counts) < 2:
        raise ValueError(
            "sampler must have one phi for every N: fit it with `indis fit --steps 3-10`"
        )
    return sampler.policy


def measure(
    sampler: Sampler, denoiser: Denoiser, data: Endpoints, loss: Loss, batch: int = 500
) -> Iterator[tuple[int, Tensor]]:
    """Each number of steps and the losses ``(len(data),)`` there, the smallest number first; losses
    are on the CPU.
    """
    policy = any_steps(sampler)
    for steps in policy.counts:
        yield steps, losses_of_pairs(denoiser, sampler.at(steps), data, loss, batch)


def foresee(
    sampler: Sampler, data: Endpoints, losses: Tensor, config: BudgetConfig
) -> ErrorPredictor:
    """Fit the predictor to measured ``losses`` ``(len(data), counts)``; the best held-out state is
    kept.

    It is so small a network that it is fitted on the CPU, where the end points are.

    Raises:
        ValueError: if a loss is not finite, or the held-out part leaves nothing to fit on.
        FloatingPointError: if the fit stops being finite.
    """
    policy = any_steps(sampler)
    _require_finite(losses, policy.counts)
    with seeded(config.seed):
        reader = {
            "condition_dim": policy.condition_dim,
            "width": config.width,
            "depth": config.depth,
        }
        predictor = ErrorPredictor(policy.counts, shape=policy.shape or (), **reader)
    # It starts at each number's mean loss, and the scale of a loss does not matter.
    mean = losses.mean(0).clamp_min(1e-30)
    with torch.no_grad():
        predictor.head.bias.copy_(mean.log())
    split = len(data) - max(1, round(config.holdout * len(data)))
    if split < 1:
        raise ValueError(
            f"holdout must leave one of the {len(data)} end points to fit on, got {config.holdout}"
        )
    _descend(predictor, data, losses, split, config)
    return predictor.eval().requires_grad_(False)


def evaluations(sampler: Sampler) -> tuple[int, ...]:
    """Return what each number of steps of a sampler costs, in evaluations.

    Raises:
        ValueError: if the sampler serves one number of steps only.
    """
    return tuple(sampler.at(steps).nfe for steps in any_steps(sampler).counts)


def allocate(log_expected: Tensor, costs: tuple[int, ...], price: float) -> Tensor:
    """Return the column ``(batch,)`` that each row takes.

    Args:
        log_expected: logarithms of the expected losses ``(batch, counts)``.
        costs: evaluations of each column.
        price: loss that one evaluation must save.
    """
    cost = torch.tensor(costs, dtype=torch.float64, device=log_expected.device)
    return (log_expected.double().exp() + price * cost).argmin(1)


def check_mean(costs: tuple[int, ...], mean: float) -> None:
    """Pass if samples that cost one of ``costs`` evaluations each can have that mean.

    Raises:
        ValueError: if not.
    """
    if not min(costs) <= mean <= max(costs):
        raise ValueError(f"mean must be in {min(costs)} ... {max(costs)} evaluations, got {mean}")


def mean_nfe(log_expected: Tensor, costs: tuple[int, ...], price: float) -> float:
    """Return the mean number of evaluations that rows take at a price.

    It may stay far below the mean that the price was set for: where rows are foreseen alike, they
    move together.
    """
    numbers = torch.tensor(costs, dtype=torch.float64, device=log_expected.device)
    return numbers[allocate(log_expected, costs, price)].mean().item()


def price_for(log_expected: Tensor, costs: tuple[int, ...], mean: float) -> float:
    """Return the lowest price at which the mean number of evaluations is at most ``mean``.

    Raises:
        ValueError: if no mixture of the costs has that mean.
    """
    check_mean(costs, mean)
    high = math.log(float(log_expected.double().exp().max()) + 1e-30)
    low = high - 60  # a price that no loss notices
    for _ in range(100):
        middle = (low + high) / 2
        too_many = mean_nfe(log_expected, costs, math.exp(middle)) > mean
        low, high = (middle, high) if too_many else (low, middle)
    return math.exp(high)


@dataclass
class BudgetSampler:
    """Samples with a number of steps of their own each.

    Args:
        sampler: a sampler for a range of steps.
        predictor: foresees the loss of a sample at each number of steps.
        price: loss that one evaluation must save.
        mean: the mean number of evaluations that the price was set for.
    """

    sampler: Sampler
    predictor: ErrorPredictor
    price: float
    mean: float

    def __post_init__(self) -> None:
        self.costs = evaluations(self.sampler)

    def to(self, device: torch.device | str) -> BudgetSampler:
        """Itself, with its policy and its predictor moved to a device."""
        self.sampler.to(device)
        self.predictor.to(device)
        return self

    def steps(self, noise: Tensor, features: Tensor | None = None) -> Tensor:
        """The number of steps ``(batch,)`` that each sample takes."""
        with torch.no_grad():
            column = allocate(self.predictor(noise, features), self.costs, self.price)
        return torch.tensor(self.predictor.counts, device=column.device)[column]

    def __call__(
        self, denoiser: Denoiser, noise: Tensor, condition: Condition = UNCONDITIONAL
    ) -> Tensor:
        """Samples from unit ``noise`` ``(batch, *shape)``: those of equal number run together."""
        steps, out = self.steps(noise, condition.features), torch.empty_like(noise)
        for number in steps.unique().tolist():
            rows = (steps == number).nonzero()[:, 0]
            out[rows] = self.sampler.at(number)(denoiser, noise[rows], condition[rows])
        return out


def save(
    budget: BudgetSampler, folder: Path | str, provenance: dict[str, Any] | None = None
) -> None:
    """An artifact folder with two files more; ``budget.json`` comes last, so a folder that has it
    is complete.

    It has the checksums of the others: one that was interrupted while it was overwritten is told
    from a good one.

    Raises:
        ValueError: if ``provenance`` is not JSON.
    """
    folder = Path(folder)
    artifact.write(budget.sampler, folder, provenance)
    save_tensors(folder / WEIGHTS, budget.predictor.state_dict())
    own = {
        "price_per_evaluation": budget.price,
        "mean": budget.mean,
        "predictor": budget.predictor.describe(),
    }
    files = {name: checksum(folder / name) for name in BOUND}
    save_record(folder / FILE, FORMAT, own | {"files": files})


def load(folder: Path | str) -> BudgetSampler:
    """What :func:`save` wrote.

    Raises:
        FileNotFoundError: if the folder has no budget.
        ValueError: if a file is damaged, or of another budget than the rest.
    """
    folder = Path(folder)
    config = load_record(folder / FILE, FORMAT)
    _check_files(folder, config)
    sampler, (tensors, _) = artifact.read(folder), load_tensors(folder / WEIGHTS)
    with malformed(folder / FILE, "budget"):
        described = exactly(config["predictor"], PREDICTOR)
        with SizedBy(tensors):
            predictor = ErrorPredictor(**described)
            predictor.load_state_dict(tensors)
        if described["counts"] != list(any_steps(sampler).counts):
            raise ValueError(f"counts must be those of its sampler, got {described['counts']}")
        price, mean = float(config["price_per_evaluation"]), float(config["mean"])
        return BudgetSampler(sampler, predictor.eval().requires_grad_(False), price, mean)


def _check_files(folder: Path, config: Any) -> None:
    """Pass if the files are those that were written together."""
    files = config.get("files") if isinstance(config, dict) else None
    if not isinstance(files, dict):
        raise DamagedFileError(
            folder / FILE, "is not a complete budget: it lacks the checksums of the other files"
        )
    for name in BOUND:
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder / name} does not exist")
        if files.get(name) != checksum(folder / name):
            raise DamagedFileError(
                folder, f"is damaged: {name} is not the one that {FILE} was written with"
            )


def _require_finite(losses: Tensor, counts: tuple[int, ...]) -> None:
    # One sample that blew up at one N would turn every expected loss there into NaN, and no price
    # could be found.
    bad = ~losses.isfinite()
    if bool(bad.any()):
        numbers = [n for n, some in zip(counts, bad.any(0).tolist(), strict=True) if some]
        raise ValueError(
            f"losses must be finite, got {int(bad.sum())} that are not, with {numbers} steps"
        )


def _descend(
    predictor: ErrorPredictor, data: Endpoints, losses: Tensor, split: int, config: BudgetConfig
) -> None:
    generator = torch.Generator().manual_seed(config.seed)
    optimizer = torch.optim.Adam(predictor.parameters())
    heldout = data[split:], losses[split:]
    best, state = _heldout(predictor, *heldout), copied_state(predictor)

    def objective(step: int) -> Tensor:
        index = torch.randint(split, (config.batch,), generator=generator)
        told = predictor(data.noise[index], data.condition[index].features)
        return deviance(told, losses[index]).mean()

    try:
        steps = descend(optimizer, objective, iterations=config.iterations, lr=config.lr)
        for step, _ in steps:
            if step % 50 == 0 or step == config.iterations:
                value = _heldout(predictor, *heldout)
                if value < best:
                    best, state = value, copied_state(predictor)
    finally:
        predictor.load_state_dict(state)


def _heldout(predictor: ErrorPredictor, data: Endpoints, losses: Tensor) -> float:
    with torch.no_grad():
        return deviance(predictor(data.noise, data.condition.features), losses).mean().item()

"""Fitting a policy to teacher end points (paper, Eq. 8 and Algorithm 1).

    end points -> noise -> policy -> plan -> solve -> decode -> loss

Gradients flow back into the policy alone. Batch i is a pure function of (seed, i), so a resumed run
repeats an uninterrupted one bit for bit. :meth:`Tuning.run` is a generator: the caller logs, draws,
stops.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from indis.denoise import Denoiser, to_device_of
from indis.endpoints import Endpoints
from indis.losses import Loss
from indis.policies import Policy
from indis.recipe import Recipe, descend
from indis.sampler import Sampler
from indis.sealed import load_checkpoint, pack_optimizer, save_checkpoint, unpack_optimizer
from indis.storage import DamagedFileError, as_json, difference, malformed, section


@dataclass(frozen=True)
class Progress:
    """One iteration: its number (from 1), its loss, the held-out loss if it was measured, and the
    best one so far.
    """

    step: int
    iterations: int
    loss: float
    heldout: float | None
    best: float


class Tuning(ABC):
    """Turns an untuned sampler into a tuned one: iterate :meth:`run`, then take ``sampler``.

    It works on the denoiser's device: sampler and loss are moved there once, end points batch by
    batch. ``best`` is the best held-out loss so far, ``curve`` holds all of them, each beside its
    iteration.

    Raises:
        ValueError: if the end points are too few for the held-out part.
    """

    def __init__(
        self, sampler: Sampler, denoiser: Denoiser, data: Endpoints, loss: Loss, recipe: Recipe
    ) -> None:
        if not callable(loss):
            raise TypeError(
                "loss must be a function (student, teacher) such as losses.named('mse'), "
                f"got {loss!r}"
            )
        self.train, self.heldout = recipe.split(data)
        self.sampler, self.loss = to_device_of(sampler, denoiser), to_device_of(loss, denoiser)
        self.denoiser, self.recipe = denoiser, recipe
        self.step, self.best = 0, math.inf
        self.curve: list[tuple[int, float]] = []
        self.initial_loss = math.inf  # the held-out loss before the first iteration

    @property
    def iterations(self) -> int:
        """The number of iterations of a whole run."""
        return self.recipe.iterations

    @property
    def improved(self) -> bool:
        """Whether the held-out loss fell below that of the start; False without held-out end
        points.
        """
        return self.best < self.initial_loss

    @abstractmethod
    def run(self) -> Iterator[Progress]:
        """Work to the end; the sampler's policy is then the tuned one."""

    @abstractmethod
    def finish(self) -> None:
        """Take the best policy so far, as :meth:`run` does at its end; for a caller that stops
        earlier.
        """

    @abstractmethod
    def save(self, path: Path, meta: Any = None) -> None:
        """Write a checkpoint."""

    @abstractmethod
    def resume(self, path: Path, meta: Any = None) -> None:
        """Continue from a checkpoint of the same configuration (``meta`` included)."""

    def validate(self) -> float:
        """Return the loss on the held-out end points that fits are judged by."""
        return self.heldout_loss(self.sampler)

    def heldout_loss(self, sampler: Sampler) -> float:
        """Return the mean loss of a sampler on the held-out end points.

        Raises:
            ValueError: if there are none.
        """
        if not len(self.heldout):
            raise ValueError("holdout must be above 0 to validate, got 0")
        size = self.recipe.scarce or 500
        parts = (self.heldout[i : i + size] for i in range(0, len(self.heldout), size))
        with torch.no_grad():
            return torch.cat([self.losses(sampler, part) for part in parts]).mean().item()

    def losses(self, sampler: Sampler, part: Endpoints, index: Tensor | None = None) -> Tensor:
        """Return the loss of each sample, ``(len(part),)``.

        Raises:
            ValueError: if the loss function does not return one number a sample.
        """
        part, index = to_device_of(part, self.denoiser), to_device_of(index, self.denoiser)
        student = sampler(
            self.denoiser,
            part.noise,
            part.condition,
            index=index,
            recompute=self.recipe.recompute,
        )
        losses = self.loss(self.denoiser.decode(student), self.denoiser.decode(part.target))
        if tuple(losses.shape) != (len(student),):
            raise ValueError(
                f"loss must give one number a sample, ({len(student)},), got {tuple(losses.shape)}"
            )
        return losses


class Search(Tuning):
    """Computes a policy in one piece of work, without gradients.

    Args:
        search: returns the policy from the training end points.
    """

    def __init__(
        self,
        sampler: Sampler,
        denoiser: Denoiser,
        data: Endpoints,
        loss: Loss,
        recipe: Recipe,
        search: Callable[[Endpoints], Policy],
    ) -> None:
        super().__init__(sampler, denoiser, data, loss, recipe)
        self.search = search

    @property
    def iterations(self) -> int:
        """One."""
        return 1

    def run(self) -> Iterator[Progress]:
        """Compute the policy."""
        if len(self.heldout):
            self.initial_loss = self.validate()
        self.sampler.policy = to_device_of(self.search(self.train), self.denoiser)
        self.step = 1
        if len(self.heldout):
            self.best = self.validate()
            self.curve.append((1, self.best))
        yield Progress(1, 1, self.best, self.best if len(self.heldout) else None, self.best)

    def finish(self) -> None:
        """Do nothing: there is one policy."""

    def save(self, path: Path, meta: Any = None) -> None:
        """Do nothing: there is no state between the start and the end."""

    def resume(self, path: Path, meta: Any = None) -> None:
        """Do nothing: the policy is computed again."""


class Fit(Tuning):
    """Gradient descent on the loss. After :meth:`run` the sampler has the best held-out parameters.

    Raises:
        ValueError: if the end points are too few for the held-out part, or the policy has no
            parameters.
    """

    def __init__(
        self, sampler: Sampler, denoiser: Denoiser, data: Endpoints, loss: Loss, recipe: Recipe
    ) -> None:
        super().__init__(sampler, denoiser, data, loss, recipe)
        self.best_state = copied_state(sampler.policy)
        self.optimizer = recipe.optimizer(sampler.policy, tuple(denoiser.shape))

    def run(self) -> Iterator[Progress]:
        """Iterate to the end of the recipe.

        Raises:
            FloatingPointError: if the loss, its gradient or the held-out loss stops being finite;
                the policy is then the best one so far.
        """
        try:
            if self.recipe.holdout and self.step == 0:
                self.initial_loss = self._judge()
            for step, loss in self.descent():
                self.step = step
                heldout = self._judge() if self._validates() else None
                if heldout is not None:
                    self.curve.append((step, heldout))
                yield Progress(step, self.recipe.iterations, loss, heldout, self.best)
        except FloatingPointError:
            self.finish()
            raise
        self.finish()

    @property
    def relative(self) -> bool:
        """Whether a loss is divided by its own value."""
        return self.recipe.relative

    def descent(self) -> Iterator[tuple[int, float]]:
        """Take one step after another; yield its number (from 1) and its loss."""
        recipe = self.recipe
        return descend(
            self.optimizer,
            self.objective,
            iterations=recipe.iterations,
            lr=recipe.rate(self.sampler.policy),
            warmup=recipe.warmup * recipe.iterations,
            clip=recipe.clip,
            relative=self.relative,
            first=self.step,
        )

    def objective(self, step: int) -> Tensor:
        """Return the mean loss of the batch of a step."""
        index = self.batch(step)
        return self.losses(self.sampler, self.train[index], index).mean()

    def batch(self, step: int) -> Tensor:
        """Return the rows of a step's batch: a fresh permutation each epoch, by seed and step."""
        count, size = len(self.train), self.recipe.batch
        if size >= count:
            return torch.arange(count)
        epoch, place = divmod(step, count // size)
        generator = torch.Generator().manual_seed(self.recipe.seed * 1_000_003 + epoch)
        return torch.randperm(count, generator=generator)[place * size : (place + 1) * size]

    def finish(self) -> None:
        """Take the best parameters so far, as :meth:`run` does at its end.

        Continuing afterwards does not reproduce an uninterrupted run; save a checkpoint first.
        """
        if self.recipe.holdout:
            self.sampler.policy.load_state_dict(self.best_state)

    def save(self, path: Path, meta: Any = None) -> None:
        """Write a checkpoint that :meth:`resume` continues from, bit for bit."""
        tensors, numbers = self._state()
        save_checkpoint(path, tensors, {"config": self._identity(), "meta": meta, **numbers})

    def resume(self, path: Path, meta: Any = None) -> None:
        """Continue from a checkpoint of the same sampler, end points and recipe (``meta``
        included).

        Raises:
            ValueError: if it belongs to another fit.
            DamagedFileError: if it is damaged, or no checkpoint.
        """
        fields = ("config", "meta", "step", "initial", "best", "curve")
        tensors, header = load_checkpoint(path, *fields)
        found = {"fit": header["config"], "meta": header["meta"]}
        wanted = as_json({"fit": self._identity(), "meta": meta})
        if found != wanted:
            raise ValueError(
                f"{path} was written with another configuration ({difference(found, wanted)}): "
                "give the same one or another folder"
            )
        if type(header["step"]) is not int or not 0 <= header["step"] <= self.iterations:
            raise DamagedFileError(
                path, f"is damaged: step must be in 0 ... {self.iterations}, got {header['step']!r}"
            )
        with malformed(path, "checkpoint"):
            self._restore(tensors, header)

    def _identity(self) -> dict[str, Any]:
        """What a checkpoint must have been made with."""
        return asdict(self.recipe) | self._subject()

    def _subject(self) -> dict[str, Any]:
        """What is fitted to what."""
        sampler, policy = self.sampler, self.sampler.policy
        return {
            "model": self.denoiser.fingerprint,
            "seeds": [int(self.train.seeds[0]), int(self.train.seeds[-1]), len(self.train)],
            "solver": repr(sampler.solver),
            "analytic_first": sampler.analytic_first,
            "policy": type(policy).__name__,
            "sizes": {name: list(value.shape) for name, value in policy.state_dict().items()},
            "bounds": repr(getattr(policy, "bounds", None)),
        }

    def _state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """All that changes during a run: tensors, and numbers as JSON."""
        current = {f"policy.{k}": v for k, v in self.sampler.policy.state_dict().items()}
        best = {f"best.{k}": v for k, v in self.best_state.items()}
        losses = {"best": self.best, "initial": self.initial_loss}
        numbers = {"step": self.step, "curve": self.curve} | {
            name: v if math.isfinite(v) else None for name, v in losses.items()
        }
        return current | best | pack_optimizer(self.optimizer), numbers

    def _restore(self, tensors: dict[str, Tensor], numbers: dict[str, Any]) -> None:
        """Undo :meth:`_state`."""
        policy = self.sampler.policy
        policy.load_state_dict(section(tensors, "best."))
        self.best_state = copied_state(policy)
        policy.load_state_dict(section(tensors, "policy."))
        unpack_optimizer(self.optimizer, tensors)
        self.step = numbers["step"]
        self.curve = [(int(step), float(loss)) for step, loss in numbers["curve"]]
        self.best, self.initial_loss = (
            math.inf if v is None else float(v) for v in (numbers["best"], numbers["initial"])
        )

    def _validates(self) -> bool:
        last = self.step == self.recipe.iterations
        return self.recipe.holdout > 0 and (last or self.step % self.recipe.validate_every == 0)

    def _judge(self) -> float:
        """Measure the held-out loss, and keep the parameters if it is the best so far."""
        heldout = self.validate()
        if not math.isfinite(heldout):
            raise FloatingPointError(
                f"the held-out loss is not finite after iteration {self.step}, got {heldout}"
            )
        if heldout < self.best:
            self.best, self.best_state = heldout, copied_state(self.sampler.policy)
        return heldout


def copied_state(module: nn.Module) -> dict[str, Tensor]:
    """Return a copy of a state; ``state_dict`` refers to what the optimizer goes on changing."""
    return {k: v.detach().clone() for k, v in module.state_dict().items()}

"""Fitting a policy to teacher endpoints (paper, Eq. 8 and Algorithm 1).

    endpoints -> noise -> policy -> plan -> solve -> decode -> loss

Gradients are the only thing that flows back, and only into the policy. Batch i is a pure function
of (seed, i), so a resumed run repeats bit for bit what an uninterrupted one would have done.
:meth:`Fit.run` is a generator: the caller logs, draws, stops.
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

from indis.checks import require_least
from indis.denoise import Denoiser, to_device_of
from indis.endpoints import Endpoints
from indis.losses import Loss
from indis.policies import Policy
from indis.sampler import Sampler
from indis.storage import (
    as_json,
    difference,
    load_checkpoint,
    pack_optimizer,
    save_tensors,
    section,
    unpack_optimizer,
)


@dataclass(frozen=True)
class Recipe:
    """How a policy is tuned. Adam and cosine are the paper's; the numbers it does not give are
    ours.
    """

    iterations: int = 500  # number of the optimizer's steps
    batch: int = 64  # number of end points an iteration
    lr: float = 2e-2  # learning rate of a bare logit; a network's weights learn more slowly, see Policy.rates
    warmup: float = 0.1  # part of the iterations in which the rate rises: Adam's first steps know no gradient's size
    clip: float = 1.0  # largest norm of the gradient, which is scaled down to it
    # divide a batch's loss by its own value, so that clip is relative to it and no batch counts
    # more for being worse: for losses with heavy tails
    relative: bool = False
    holdout: int = 500  # number of end points, the last ones, that are never trained on; 0 keeps the last state
    validate_every: int = 50  # number of iterations between two held-out losses
    # recompute network calls in the backward pass, and never ask for more than a batch at once: for
    # scarce memory
    checkpoint: bool = False
    seed: int = 0  # seed of the initial weights and the batches
    starts: int = 1  # number of seeds that are tried for a quarter of the iterations; the best of them goes on

    def __post_init__(self) -> None:
        require_least(self, iterations=1, batch=1, holdout=0, validate_every=1, starts=1)
        if self.starts > 1 and not self.holdout:
            raise ValueError(
                f"starts must be 1 with a holdout of 0, which leaves nothing to choose by, got {self.starts}"
            )
        if not 0 <= self.warmup < 1:
            raise ValueError(f"warmup must be in [0, 1), got {self.warmup}")
        for name in ("lr", "clip"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be positive and finite, got {getattr(self, name)}")

    @property
    def scarce(self) -> int | None:
        """How many samples may be worked on at once where memory is scarce; None where it is
        not.
        """
        return self.batch if self.checkpoint else None

    def parted(self, data: Endpoints) -> tuple[Endpoints, Endpoints]:
        """What is trained on, and what is held out.

        Raises:
            ValueError: if nothing is left to train on.
        """
        if len(data) <= self.holdout:
            raise ValueError(
                f"holdout must be below the number of endpoints, got {self.holdout} of {len(data)}"
            )
        split = len(data) - self.holdout
        return data[:split], data[split:]

    def lr_at(self, step: int) -> float:
        """Up to ``lr`` in a straight line, and along a cosine to zero."""
        rising = (step + 1) / max(1.0, self.warmup * self.iterations)
        return min(1.0, rising) * self.lr * (1 + math.cos(math.pi * step / self.iterations)) / 2


@dataclass(frozen=True)
class Progress:
    """One iteration: its number (from 1), its loss, the held-out loss when it was measured, and the
    best one so far.
    """

    step: int
    iterations: int
    loss: float
    heldout: float | None
    best: float


class Tuning(ABC):
    """What turns an untuned sampler into a tuned one: endpoints to learn from, others to judge by,
    and :meth:`run`.

    It works on the denoiser's device: sampler and loss are moved there once, end points batch by
    batch.

    Raises:
        ValueError: if the endpoints are too few for the held-out part.
    """

    def __init__(
        self, sampler: Sampler, denoiser: Denoiser, data: Endpoints, loss: Loss, config: Recipe
    ) -> None:
        if not callable(loss):
            raise TypeError(
                f"loss must be a function (student, teacher) such as losses.named('mse'), got {loss!r}"
            )
        self.train, self.heldout = config.parted(data)
        self.sampler, self.loss = to_device_of(sampler, denoiser), to_device_of(loss, denoiser)
        self.denoiser, self.config = denoiser, config
        self.step, self.best = 0, math.inf

    @property
    def iterations(self) -> int:
        """What :attr:`step` ends at."""
        return self.config.iterations

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
        """Mean loss on the held-out endpoints; ``checkpoint`` says that memory is scarce here as
        well.
        """
        size = self.config.scarce or 500
        with torch.no_grad():
            parts = [
                self._losses(self.heldout[i : i + size]) for i in range(0, len(self.heldout), size)
            ]
        return torch.cat(parts).mean().item()

    def _losses(self, part: Endpoints, index: Tensor | None = None) -> Tensor:
        part, index = to_device_of(part, self.denoiser), to_device_of(index, self.denoiser)
        student = self.sampler(
            self.denoiser,
            part.noise,
            part.condition,
            index=index,
            recompute=self.config.checkpoint,
        )
        losses = self.loss(self.denoiser.decode(student), self.denoiser.decode(part.target))
        if tuple(losses.shape) != (len(student),):
            raise ValueError(
                f"loss must give one number a sample, ({len(student)},), got {tuple(losses.shape)}"
            )
        return losses


class Search(Tuning):
    """A policy that is computed rather than learned by gradient: one piece of work, judged like any
    other.
    """

    def __init__(
        self,
        sampler: Sampler,
        denoiser: Denoiser,
        data: Endpoints,
        loss: Loss,
        config: Recipe,
        search: Callable[[Endpoints], Policy],
    ) -> None:
        super().__init__(sampler, denoiser, data, loss, config)
        self.search = search

    @property
    def iterations(self) -> int:
        """One piece of work."""
        return 1

    def run(self) -> Iterator[Progress]:
        """Compute the policy from the training endpoints."""
        self.sampler.policy = to_device_of(self.search(self.train), self.denoiser)
        self.step = 1
        if len(self.heldout):
            self.best = self.validate()
        yield Progress(1, 1, self.best, self.best if len(self.heldout) else None, self.best)

    def finish(self) -> None:
        """Nothing: it has one policy."""

    def save(self, path: Path, meta: Any = None) -> None:
        """Nothing: there is no state between the start and the end."""

    def resume(self, path: Path, meta: Any = None) -> None:
        """Nothing: it is computed again."""


class Fit(Tuning):
    """Gradient descent on the loss. After :meth:`run` the sampler's policy holds the best held-out
    parameters.

    For the part ``settle`` of the iterations only bare logits move; a network waits for them
    (:meth:`Policy.rates`).

    Raises:
        ValueError: if the endpoints are too few for the held-out part, or the policy has no
            parameters.
    """

    def __init__(
        self,
        sampler: Sampler,
        denoiser: Denoiser,
        data: Endpoints,
        loss: Loss,
        config: Recipe,
        settle: float = 0.0,
    ) -> None:
        super().__init__(sampler, denoiser, data, loss, config)
        self.settle = settle
        self.untuned = math.inf  # the held-out loss at the start
        self.best_state = copied_state(sampler.policy)
        self.optimizer = self._optimizer()

    def run(self) -> Iterator[Progress]:
        """Iterate to the end of the config.

        Raises:
            FloatingPointError: if the loss, its gradient or the held-out loss stops being finite;
                the policy is then
                the best one so far.
        """
        if self.config.holdout and self.step == 0:
            self.untuned = self._look()
            self._keep_best(self.untuned)
        while self.step < self.config.iterations:
            loss = self._iterate()
            heldout = self._look() if self._validates() else None
            if heldout is not None:
                self._keep_best(heldout)
            yield Progress(self.step, self.config.iterations, loss, heldout, self.best)
        self.finish()

    def finish(self) -> None:
        """Take the best parameters so far, as :meth:`run` does at its end; a caller that stops
        earlier calls it.

        What comes after it is not what an uninterrupted run would have done; save a checkpoint
        before.
        """
        if self.config.holdout:
            self.sampler.policy.load_state_dict(self.best_state)

    def judge(self) -> None:
        """Look at the held-out loss now; the state is kept if it is the best so far."""
        Fit._keep_best(self, self._look())  # a method's own bookkeeping must not count this look

    def save(self, path: Path, meta: Any = None) -> None:
        """Write a checkpoint that :meth:`resume` continues from, bit for bit."""
        tensors, numbers = self._state()
        save_tensors(path, tensors, {"config": self._identity(), "meta": meta, **numbers})

    def resume(self, path: Path, meta: Any = None) -> None:
        """Continue from a checkpoint of the same sampler, end points and configuration (``meta``
        included).

        Raises:
            ValueError: if it belongs to another one, or is no checkpoint.
        """
        tensors, header = load_checkpoint(path, "config", "meta", "step", "untuned", "best")
        require_same(path, header, self._identity(), meta)
        self._restore(tensors, header)

    def _identity(self) -> dict[str, Any]:
        """What a checkpoint must have been made with."""
        return asdict(self.config) | {"settle": self.settle} | self._subject()

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
        losses = {"best": self.best, "untuned": self.untuned}
        numbers = {"step": self.step} | {
            name: v if math.isfinite(v) else None for name, v in losses.items()
        }
        return current | best | pack_optimizer(self.optimizer), numbers

    def _restore(self, tensors: dict[str, Tensor], numbers: dict[str, Any]) -> None:
        """Undo :meth:`_state`."""
        self.sampler.policy.load_state_dict(section(tensors, "policy."))
        self.best_state = section(tensors, "best.")
        unpack_optimizer(self.optimizer, tensors)
        self.step = numbers["step"]
        self.best, self.untuned = (
            math.inf if v is None else v for v in (numbers["best"], numbers["untuned"])
        )

    def _optimizer(self) -> torch.optim.Optimizer:
        learned = [
            ([p for p in group if p.requires_grad], rate)
            for group, rate in self.sampler.policy.rates()
        ]
        groups = [
            {"params": parameters, "rate": rate} for parameters, rate in learned if parameters
        ]
        if not groups:
            raise ValueError("policy has nothing to learn")
        return torch.optim.Adam(groups, lr=self.config.lr)

    def _iterate(self) -> float:
        for group in self.optimizer.param_groups:
            group["lr"] = self._rate(group["rate"])
        self.optimizer.zero_grad(set_to_none=True)
        loss, value = self._objective(self._batch())
        # Of the model nothing is learned, whether its user has frozen it or not.
        loss.backward(inputs=[p for group in self.optimizer.param_groups for p in group["params"]])
        norm = nn.utils.clip_grad_norm_(self.sampler.policy.parameters(), self.config.clip)
        self._require_finite(loss, norm)
        self.optimizer.step()
        self.step += 1
        return value

    def _rate(self, relative: float) -> float:
        """What a group learns at now."""
        waits = relative < 1 and self.step < self.settle * self.config.iterations
        return 0.0 if waits else relative * self.config.lr_at(self.step)

    def _objective(self, index: Tensor) -> tuple[Tensor, float]:
        """What is differentiated for a batch, and the loss to report."""
        loss = self._losses(self.train[index], index).mean()
        return relative(loss) if self.config.relative else loss, loss.item()

    def _require_finite(self, *values: Tensor) -> None:
        """Called before a step is taken, so the parameters are the last good ones; the best ones
        are better still.
        """
        if all(bool(torch.isfinite(value)) for value in values):
            return
        self.finish()
        raise FloatingPointError(
            f"the loss or its gradient is not finite at iteration {self.step + 1}"
        )

    def _look(self) -> float:
        """The held-out loss, which must be a number: nothing is better or worse than NaN."""
        heldout = self.validate()
        if math.isfinite(heldout):
            return heldout
        self.finish()
        raise FloatingPointError(
            f"the held-out loss is not finite after iteration {self.step}, got {heldout}"
        )

    def _batch(self) -> Tensor:
        """Indices of this iteration: a fresh permutation each epoch, a pure function of (seed,
        step).
        """
        count = len(self.train)
        if self.config.batch >= count:
            return torch.arange(count)
        per_epoch = count // self.config.batch
        epoch, place = divmod(self.step, per_epoch)
        generator = torch.Generator().manual_seed(self.config.seed * 1_000_003 + epoch)
        start = place * self.config.batch
        return torch.randperm(count, generator=generator)[start : start + self.config.batch]

    def _validates(self) -> bool:
        last = self.step == self.config.iterations
        return self.config.holdout > 0 and (last or self.step % self.config.validate_every == 0)

    def _keep_best(self, heldout: float) -> None:
        if heldout < self.best:
            self.best, self.best_state = heldout, copied_state(self.sampler.policy)


def require_same(path: Path, header: dict[str, Any], identity: Any, meta: Any) -> None:
    """Raise for a checkpoint of another configuration."""
    found, wanted = (
        {"fit": header["config"], "meta": header["meta"]},
        {"fit": identity, "meta": meta},
    )
    if found != as_json(wanted):
        what = difference(found, wanted)
        raise ValueError(
            f"{path} was written with another configuration ({what}): give the same one or another folder"
        )


def relative(loss: Tensor) -> Tensor:
    """The loss as a multiple of itself: one, with the gradient of its logarithm."""
    return loss / loss.detach().clamp_min(1e-30)


def copied_state(module: nn.Module) -> dict[str, Tensor]:
    """A state that stays as it is, where ``state_dict`` refers to what the optimizer goes on
    changing.
    """
    return {k: v.detach().clone() for k, v in module.state_dict().items()}

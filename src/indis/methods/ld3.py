"""LD3 (Tong et al., ICLR 2025, arXiv 2405.15506): a few global numbers, learned from a handful of
teacher endpoints.

The plan is :mod:`indis.policies.ld3`. A first round learns the stamps alone, a second one the
shifts too. The *soft* objective asks for less than the teacher's very end point: each pair's
starting latent may itself move inside a small ball, and does so where that lowers its own loss;
what the pairs agree on is left to the plan.

Where this departs from the released code:

* Held-out latents do not move, so the best plan is the best at what users do. Hence also without: halving
  ``latent_lr`` after a round in which no held-out latent moved.
* The number of iterations is fixed. The released code also stops when a rate has reached its minimum five times, and
  widens its validation set from one batch to all when it first gets stuck; here it is all from the
  start.
* A latent's trial step uses the gradient of its own loss and is judged before the plan moves, so no sample's loss
  rises by it.
* The second round begins at the best plan of the first, with rates and momentum afresh. The released code goes back
  to the best plan before every round, and takes the latents back too where it restores a plan.
* ``fit.lr`` and its cosine are not read: each of the two vectors has a rate of its own, which falls when held-out
  losses do not.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from indis import grids, solvers
from indis.checks import require_choice, require_least
from indis.denoise import Denoiser, Form
from indis.endpoints import Endpoints
from indis.losses import Loss
from indis.methods.method import Method
from indis.noise import EDM, Domain
from indis.numerics import broadcast
from indis.plan import Keep
from indis.policies.ld3 import LD3Policy
from indis.sampler import Sampler
from indis.tuning import Fit, Recipe

Objective = Literal["soft", "hard"]

LEAST_STAMP_LR, LEAST_SHIFT_LR = 5e-5, 1e-6  # released code


@dataclass(frozen=True)
class LD3(Method):
    """One fit. Numbers are the released code's; its loss is LPIPS. Its budget, seven epochs of 25,
    is the default.

    ``grid`` "uniform" means stamps that are even in ``domain``, LD3's own start; any other grid is
    a start that the logits are measured from (the released code fits its logits to one). ``None``
    means what was published for the denoiser's schedule: log-SNR and the larger shift rate for EDM,
    time and the smaller one for the rest. Iterations are shared out between the two rounds in
    proportion to ``stamp_rounds`` and ``shift_rounds``.

    Raises:
        ValueError: for a number outside its range.
    """

    # euler, heun, ipndm, adams_bashforth, deis, dpmpp, unipc or midpoint, as name[:order[:variant]]
    solver: str = "unipc:3:bh1"
    # where it starts: natural (polynomial:7, or uniform for a flow), uniform, log_snr, polynomial,
    # quadratic, vp_time, flow_shift or resolution, as name[:parameter], or list:T0,T1,... of times
    grid: str = "uniform"
    recipe: Recipe = field(
        default_factory=lambda: Recipe(iterations=175, batch=2, holdout=50, validate_every=1)
    )
    domain: Domain | None = None  # in which nodes are spread; None: what suits the schedule
    pairs: int = 50  # how many of the training end points are used; few, since a latent that moved must be seen again
    objective: Objective = (
        "soft"  # "soft": latents may move inside a ball and still be met; "hard": not
    )
    radius: float = (
        0.001  # radius of the ball that a latent may move in, times its dimension / steps^2
    )
    latent_lr: float = 12.0  # rate of the latents, divided by steps
    stamp_lr: float = 5e-3  # rate of the logits of the timesteps
    # rate of the time shifts, divided by steps; None: what was published for the schedule
    shift_lr: float | None = None
    win_rate: float = 0.5  # the largest shift as a part of the smallest gap
    stamp_rounds: int = 2  # share of the iterations that tune the stamps
    shift_rounds: int = 5  # share of the iterations that tune the shifts
    patience: int = (
        5  # validations without improvement before the best plan is restored and both rates fall
    )
    decay: float = 0.8  # factor by which both rates fall

    def __post_init__(self) -> None:
        super().__post_init__()
        require_least(self, steps=2, pairs=1, stamp_rounds=0, shift_rounds=0, patience=1)
        self._check_rates()
        if self.stamp_rounds + self.shift_rounds < 1:
            raise ValueError("stamp_rounds + shift_rounds must be at least 1, got 0")
        require_choice("objective", self.objective, Objective)
        require_choice("domain", self.domain or "time", Domain)

    @property
    def freedoms(self) -> str:
        """Stamps, and the shifts of the times asked about."""
        rounds = {"tau": self.stamp_rounds, "dtau": self.shift_rounds if self.win_rate else 0}
        return "+".join(name for name, share in rounds.items() if share)

    def _check_rates(self) -> None:
        for name in ("radius", "latent_lr", "stamp_lr", "shift_lr"):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise ValueError(f"{name} must be positive and finite, got {value}")
        if not 0 <= self.win_rate < 1:
            raise ValueError(f"win_rate must be in [0, 1), got {self.win_rate}")
        if not 0 < self.decay <= 1:
            raise ValueError(f"decay must be in (0, 1], got {self.decay}")

    @property
    def stamp_iterations(self) -> int:
        """The length of the first round."""
        return round(
            self.recipe.iterations * self.stamp_rounds / (self.stamp_rounds + self.shift_rounds)
        )

    def untrained(self, denoiser: Denoiser) -> Sampler:
        """The sampler before any tuning."""
        schedule = denoiser.schedule
        domain = self.domain or ("log_snr" if isinstance(schedule, EDM) else "time")
        start = "log_snr" if self.grid == "uniform" and domain == "log_snr" else self.grid
        solver = solvers.named(self.solver)
        keep: Keep = (
            "data" if solver.form(denoiser.native, denoiser.schedule) is Form.DATA else "answer"
        )
        policy = LD3Policy(
            grids.named(start)(schedule, self.steps), schedule, domain, self.win_rate, keep
        )
        return Sampler(policy, solver, self.analytic_first)

    def begin(
        self, denoiser: Denoiser, data: Endpoints, loss: Loss, *, start: Sampler | None = None
    ) -> LD3Fit:
        """The two rounds.

        Raises:
            ValueError: if ``start`` is given.
        """
        if start is not None:
            raise ValueError("start must be left out for LD3, which begins at its own base")
        return LD3Fit(self, denoiser, data, loss)


class LD3Fit(Fit):
    """The two rounds as one run that can be interrupted anywhere. ``latents`` are the training
    pairs' own noises.

    Its descent is its own: ``fit.lr`` and ``fit.relative`` do not count.
    """

    def __init__(self, method: LD3, denoiser: Denoiser, data: Endpoints, loss: Loss) -> None:
        self.method = method
        super().__init__(method.untrained(denoiser), denoiser, data, loss, method.recipe)
        self.train = self.train[: method.pairs]
        self.latents = self.train.noise.clone()
        self.worse, self.slowed = 0, 1.0

    @property
    def radius(self) -> float:
        """Of each latent's ball."""
        return self.method.radius * self.latents[0].numel() / self.method.steps**2

    def _iterate(self) -> float:
        if self.step == self.method.stamp_iterations:
            self._begin_second_round()
        index = self._batch()
        latent = self.latents[index].requires_grad_(self.method.objective == "soft")
        part = replace(self.train[index], noise=latent)
        self.sampler.policy.zero_grad(set_to_none=True)
        losses = self._losses(part, index)
        moved = [latent] if latent.requires_grad else []
        losses.mean().backward(inputs=[*self._vectors(), *moved])
        norms = [nn.utils.clip_grad_norm_([vector], self.config.clip) for vector in self._vectors()]
        self._require_finite(losses.mean(), *norms)
        if self.method.objective == "soft":
            self.latents[index] = self._moved(part, index, losses.detach())
        self._descend()
        self.step += 1
        return losses.mean().item()

    def _moved(self, part: Endpoints, index: Tensor, before: Tensor) -> Tensor:
        """One trial step of each latent, inside its ball, kept where the sample's own loss fell."""
        assert part.noise.grad is not None
        own = part.noise.grad * len(index)  # the batch mean's gradient is 1 / batch of it
        latent = part.noise.detach()
        trial = self._inside(
            latent - self.method.latent_lr / self.method.steps * own, self.train.noise[index]
        )
        with torch.no_grad():
            after = self._losses(replace(part, noise=trial), index)
        better = (after < before).to(latent.device)  # latents stay where the end points are
        return torch.where(better.reshape(-1, *[1] * (latent.ndim - 1)), trial, latent)

    def _inside(self, latent: Tensor, centre: Tensor) -> Tensor:
        offset = latent - centre
        norm = offset.flatten(1).norm(dim=1)
        return centre + broadcast(self.radius / norm.clamp_min(self.radius), offset) * offset

    def _descend(self) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = _fallen(self.method.stamp_lr, self.slowed, LEAST_STAMP_LR)
        self.optimizer.step()
        if self.step >= self.method.stamp_iterations:
            self._shift()

    def _shift(self) -> None:
        """Plain descent, which has no state to keep."""
        published = 0.1 if isinstance(self.denoiser.schedule, EDM) else 0.001
        rate = (self.method.shift_lr or published) / self.method.steps
        torch.optim.SGD(self._vectors()[1:], lr=_fallen(rate, self.slowed, LEAST_SHIFT_LR)).step()

    def _begin_second_round(self) -> None:
        """From the best of the first, with rates and momentum afresh."""
        if self.config.holdout:
            self.sampler.policy.load_state_dict(self.best_state)
        self.optimizer, self.worse, self.slowed = self._optimizer(), 0, 1.0

    def _keep_best(self, heldout: float) -> None:
        self.worse = 0 if heldout < self.best else self.worse + 1
        super()._keep_best(heldout)
        if self.worse == self.method.patience:
            self.sampler.policy.load_state_dict(self.best_state)
            self.worse, self.slowed = 0, self.slowed * self.method.decay

    def _vectors(self) -> tuple[nn.Parameter, nn.Parameter]:
        policy = self.sampler.policy
        return policy.get_parameter("stamps"), policy.get_parameter("shifts")

    def _optimizer(self) -> torch.optim.Optimizer:
        """Of the stamps."""
        return torch.optim.RMSprop(self._vectors()[:1], lr=self.method.stamp_lr, momentum=0.9)

    def _identity(self) -> dict[str, Any]:
        return asdict(self.method) | self._subject()

    def _state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        tensors, numbers = super()._state()
        return tensors | {"latents": self.latents}, numbers | {
            "worse": self.worse,
            "slowed": self.slowed,
        }

    def _restore(self, tensors: dict[str, Tensor], numbers: dict[str, Any]) -> None:
        super()._restore(tensors, numbers)
        self.latents, self.worse, self.slowed = (
            tensors["latents"],
            numbers["worse"],
            numbers["slowed"],
        )


def _fallen(rate: float, factor: float, least: float) -> float:
    """A rate that falls no further than ``least``, and is not raised to it."""
    return max(rate * factor, min(least, rate))

r"""LD3 (Tong et al., ICLR 2025, arXiv 2405.15506): a few numbers that all samples share, learned
from a handful of teacher end points.

In a coordinate :math:`u` (time, or log-SNR) that runs from :math:`u_0` to :math:`u_N`,

.. math:: u_k = u_0 + (u_N - u_0) \sum_{j<k} softmax(a)_j, \qquad
          u'_k = u_k + clamp(b_k, -m, m), \qquad m = r \min_k |u_{k+1} - u_k|

with the win rate r. Steps go from :math:`u_k` to :math:`u_{k+1}`; the network is asked at
:math:`u'_k`. The first node is not shifted. A solver keeps noise or velocity as it is answered at
the shifted time, but data predictions as the network meant them there.

A first round learns the stamps :math:`a` alone, a second one the shifts :math:`b` too. The *soft*
objective asks for less than the teacher's very end point: each pair's starting latent may move
inside a small ball, and does so where that lowers its own loss; what the pairs agree on is left to
the plan.

Where this departs from the released code:

* It has N + 1 logits, of which the one at the boundary cancels in its normalisation, and N + 1
  shifts, of which masks leave N - 1. In the log-SNR mode it takes the smallest gap from the
  *logits*, so that equal logits forbid every shift; that is a slip and is not imitated.
* Held-out latents do not move, so that model selection matches deployment. Hence we also omit the
  rule that halves ``latent_lr`` after a round in which no held-out latent moved.
* The number of iterations is fixed. The released code also stops when a rate has reached its
  minimum five times, and widens its validation set from one batch to all when it first gets stuck;
  here it is all from the start.
* A latent's trial step uses the gradient of its own loss and is judged before the plan moves, so no
  sample's loss rises by it.
* The second round begins at the best plan of the first, with rates and momentum afresh. The
  released code goes back to the best plan before every round, and takes the latents back too where
  it restores a plan.
* Each of the two vectors has a learning rate of its own, which falls when held-out losses do not;
  the recipe's ``lr``, ``warmup`` and ``relative`` are not read.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from indis import solvers
from indis.checks import require_choice, require_least
from indis.denoise import Denoiser, Form
from indis.endpoints import Endpoints
from indis.logits import LOGIT_ROWS, Bounds, coordinate, from_logits
from indis.losses import Loss
from indis.methods.method import Method
from indis.noise import EDM, Domain, NoiseSchedule
from indis.numerics import TIME_DTYPE, broadcast
from indis.plan import Discretization, Keep
from indis.policies import SharedPolicy, shared_grid
from indis.recipe import Recipe, require_finite
from indis.sampler import Sampler
from indis.tuning import Fit

Objective = Literal["soft", "hard"]

LEAST_STAMP_LR, LEAST_SHIFT_LR = 5e-5, 1e-6  # released code
# Not published: no interval falls below this share of what it had at first, whatever the logits.
FLOOR = 1e-6


class LD3Policy(SharedPolicy):
    """Learned ``stamps`` ``(1, steps)`` and ``shifts`` ``(1, steps - 1)``.

    Zero stamps and shifts are the base grid bit for bit.

    Args:
        base: grid ``(1, steps + 1)``; one that is even in the domain is LD3's own start.
        schedule: noise schedule of the denoiser.
        domain: where stamps are spread.
        win_rate: the largest shift as a part of the smallest gap.
        keep: what a shift leaves as it is: "data" for a solver that keeps data predictions.

    Raises:
        ValueError: if ``win_rate`` is not in [0, 1), or the domain or ``keep`` is unknown.
    """

    base: Tensor

    def __init__(
        self,
        base: Tensor,
        schedule: NoiseSchedule,
        domain: Domain,
        win_rate: float = 0.5,
        keep: Keep = "answer",
    ) -> None:
        super().__init__()
        if not 0 <= win_rate < 1:
            raise ValueError(f"win_rate must be in [0, 1), got {win_rate}")
        self.register_buffer("base", shared_grid(base))
        self.schedule, self.win_rate, self.steps = schedule, win_rate, base.shape[1] - 1
        self.bounds = Bounds(dtau=0, gamma=0, domain=domain, keep=keep, floor=FLOOR / self.steps)
        self.stamps = nn.Parameter(torch.zeros(1, self.steps, dtype=TIME_DTYPE))
        self.shifts = nn.Parameter(torch.zeros(1, self.steps - 1, dtype=TIME_DTYPE))

    def shared_plan(self) -> Discretization:
        """Return the plan."""
        logits = F.pad(self.stamps[:, None], (0, 0, 0, LOGIT_ROWS - 1))
        stamps = from_logits(logits, self.base, self.schedule, self.bounds)
        return replace(stamps, dtau=self._dtau(stamps.tau))

    def _dtau(self, tau: Tensor) -> Tensor:
        """The clamped shifts in units of time, ``(1, steps)``."""
        to, back = coordinate(self.schedule, self.bounds.domain)
        level = to(tau)
        most = self.win_rate * level.detach().diff(dim=1).abs().amin(1, keepdim=True)
        inside = level[:, 1:-1]
        moved = back(inside + self.shifts.clamp(-most, most)) - back(inside)
        return F.pad(moved, (1, 0))


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

    name: ClassVar[str] = "ld3"

    solver: str = "unipc:3:bh1"
    """Solver."""
    grid: str = "uniform"
    """Grid that a fit starts at."""
    recipe: Recipe = field(
        default_factory=lambda: Recipe(iterations=175, batch=2, holdout=50, validate_every=1)
    )
    """How it is tuned."""
    domain: Domain | None = None
    """Domain in which nodes are spread. None is what suits the schedule."""
    pairs: int = 50
    """Number of training endpoints; few, as a latent that moved must be seen again."""
    objective: Objective = "soft"
    """soft lets latents move inside a ball, hard does not."""
    radius: float = 0.001
    """Radius of that ball, times its dimension / steps^2."""
    latent_lr: float = 12.0
    """Learning rate of the latents, divided by the number of steps."""
    stamp_lr: float = 5e-3
    """Learning rate of the logits of the timesteps."""
    shift_lr: float | None = None
    """Learning rate of time shifts, divided by the number of steps. None: as published."""
    win_rate: float = 0.5
    """Largest time shift as a part of the smallest gap."""
    stamp_rounds: int = 2
    """Share of the iterations that tune the timesteps."""
    shift_rounds: int = 5
    """Share of the iterations that tune the shifts."""
    patience: int = 5
    """Validations without improvement before both rates fall, from the best plan on."""
    decay: float = 0.8
    """Factor by which both rates fall."""

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
        """Stamps, and shifts of the times that are asked about."""
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
        """Return the sampler before any tuning."""
        schedule = denoiser.schedule
        domain = self.domain or ("log_snr" if isinstance(schedule, EDM) else "time")
        start = "log_snr" if self.grid == "uniform" and domain == "log_snr" else self.grid
        solver = solvers.named(self.solver)
        kept = solver.form(denoiser.native, schedule)
        keep: Keep = "data" if kept is Form.DATA else "answer"
        base = replace(self, grid=start).base(schedule)
        policy = LD3Policy(base, schedule, domain, self.win_rate, keep)
        return Sampler(policy, solver, self.analytic_first)

    def tuning(
        self, denoiser: Denoiser, data: Endpoints, loss: Loss, *, start: Sampler | None = None
    ) -> LD3Fit:
        """Return the two rounds as one fit.

        Raises:
            ValueError: if ``start`` is given.
        """
        self.refuse_start(start)
        return LD3Fit(self, denoiser, data, loss)


class LD3Fit(Fit):
    """The two rounds as one run that can be interrupted anywhere. ``latents`` are the training
    pairs' own noises.
    """

    def __init__(self, method: LD3, denoiser: Denoiser, data: Endpoints, loss: Loss) -> None:
        self.method = method
        super().__init__(method.untrained(denoiser), denoiser, data, loss, method.recipe)
        self.optimizer = self._of_stamps()
        self.train = self.train[: method.pairs]
        self.latents = self.train.noise.clone()
        self.worse, self.slowed = 0, 1.0

    @property
    def radius(self) -> float:
        """Of each latent's ball."""
        return self.method.radius * self.latents[0].numel() / self.method.steps**2

    def descent(self) -> Iterator[tuple[int, float]]:
        """Take one step after another; yield its number (from 1) and its loss."""
        for step in range(self.step, self.recipe.iterations):
            if step == self.method.stamp_iterations:
                self._begin_second_round()
            yield step + 1, self._iterate(step)

    def _iterate(self, step: int) -> float:
        index, vectors = self.batch(step), self._vectors()
        latent = self.latents[index].requires_grad_(self.method.objective == "soft")
        part = replace(self.train[index], noise=latent)
        self.sampler.policy.zero_grad(set_to_none=True)
        losses = self.losses(self.sampler, part, index)
        moved = [latent] if latent.requires_grad else []
        losses.mean().backward(inputs=[*vectors, *moved])
        norms = [nn.utils.clip_grad_norm_([vector], self.recipe.clip) for vector in vectors]
        require_finite(step, losses.mean(), *norms)
        if self.method.objective == "soft":
            self.latents[index] = self._moved(part, index, losses.detach())
        self._descend(step)
        return losses.mean().item()

    def _moved(self, part: Endpoints, index: Tensor, before: Tensor) -> Tensor:
        """One trial step of each latent inside its ball, kept where the sample's own loss fell."""
        assert part.noise.grad is not None
        own = part.noise.grad * len(index)  # the batch mean's gradient is 1 / batch of it
        latent, centre = part.noise.detach(), self.train.noise[index]
        offset = latent - self.method.latent_lr / self.method.steps * own - centre
        norm = offset.flatten(1).norm(dim=1)
        trial = centre + broadcast(self.radius / norm.clamp_min(self.radius), offset) * offset
        with torch.no_grad():
            after = self.losses(self.sampler, replace(part, noise=trial), index)
        better = (after < before).to(latent.device)  # latents stay where the end points are
        return torch.where(better.reshape(-1, *[1] * (latent.ndim - 1)), trial, latent)

    def _descend(self, step: int) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = _fallen(self.method.stamp_lr, self.slowed, LEAST_STAMP_LR)
        self.optimizer.step()
        if step >= self.method.stamp_iterations:  # plain descent, which has no state to keep
            published = 0.1 if isinstance(self.denoiser.schedule, EDM) else 0.001
            rate = (self.method.shift_lr or published) / self.method.steps
            rate = _fallen(rate, self.slowed, LEAST_SHIFT_LR)
            torch.optim.SGD(self._vectors()[1:], lr=rate).step()

    def _begin_second_round(self) -> None:
        """Go back to the best plan of the first, with rates and momentum afresh."""
        if self.recipe.holdout:
            self.sampler.policy.load_state_dict(self.best_state)
        self.optimizer, self.worse, self.slowed = self._of_stamps(), 0, 1.0

    def _judge(self) -> float:
        before = self.best
        heldout = super()._judge()
        self.worse = 0 if heldout < before else self.worse + 1
        if self.worse == self.method.patience:
            self.sampler.policy.load_state_dict(self.best_state)
            self.worse, self.slowed = 0, self.slowed * self.method.decay
        return heldout

    def _vectors(self) -> tuple[nn.Parameter, nn.Parameter]:
        policy = self.sampler.policy
        return policy.get_parameter("stamps"), policy.get_parameter("shifts")

    def _of_stamps(self) -> torch.optim.Optimizer:
        return torch.optim.RMSprop(self._vectors()[:1], lr=self.method.stamp_lr, momentum=0.9)

    def _identity(self) -> dict[str, Any]:
        return asdict(self.method) | self._subject()

    def _state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        tensors, numbers = super()._state()
        own = {"worse": self.worse, "slowed": self.slowed}
        return tensors | {"latents": self.latents}, numbers | own

    def _restore(self, tensors: dict[str, Tensor], numbers: dict[str, Any]) -> None:
        super()._restore(tensors, numbers)
        self.latents = tensors["latents"]
        self.worse, self.slowed = numbers["worse"], numbers["slowed"]


def _fallen(rate: float, factor: float, least: float) -> float:
    """A rate that falls no further than ``least``, and is not raised to it."""
    return max(rate * factor, min(least, rate))

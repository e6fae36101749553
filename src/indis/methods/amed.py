r"""AMED (Zhou et al., CVPR 2024; arXiv 2312.00094): a network decides each sample's next midpoint
from features of the denoiser.

    features of the evaluation at t -> linear -> SiLU -> linear -> 4 numbers
    t, t' -> sines and cosines -> linear -> SiLU -> 8 numbers each
    all 20 -> linear -> r, s_dir, s_time

AMED-Solver is a midpoint rule whose midpoint, slope scale and time scale the network decides step
by step; AMED-Plugin is a multistep solver that takes node and midpoint for two steps of its own.
``solver`` says which: "midpoint", or a multistep solver's name. The features come with the answer
at the start of a step, at no further call, and no gradient flows into them.

The paper fits each step to the teacher's state with the step's start given. Here, as for all
methods, the loss is on end points and gradients flow through the whole run. Further departures: a
stored set of end points (there fresh noise, 10 000 images in batches of 128 on CIFAR-10); the rate
warms up and follows the shared cosine; gradients are clipped; the last layer begins at zero (there
at random), so an untrained predictor is the midpoint rule; times are embedded in the schedule's own
unit (there sigma); and ``s_dir`` is the same for every solver (the released code has 0.05 for the
plugin on DPM-Solver++).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar, Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from indis import solvers
from indis.checks import require_choice, require_least
from indis.denoise import Denoiser, FeatureDenoiser, to_device_of
from indis.methods.midpoint_table import MidpointBounds, TwoStage, between, fraction, noisier
from indis.noise import SCHEDULES, NoiseSchedule
from indis.numerics import TIME_DTYPE, seeded
from indis.plan import Decision, Keep
from indis.policies import Policy, shared_grid
from indis.recipe import Recipe
from indis.sampler import Sampler
from indis.solvers import DEIS, IPNDM, AdamsBashforth, DPMSolverPP, Euler, Midpoint, Solver
from indis.storage import describe, exactly, from_fields, rebuild

Features = Literal["bottleneck", "answer"]
MULTISTEP = (Euler, IPNDM, AdamsBashforth, DEIS, DPMSolverPP)
CODE, EMBEDDING = 4, 8  # widths of the features' code and of a time's embedding, the paper's
NETWORK = ("size", "features", "plugin", "analytic_first", "width")
CELLS = 8  # pooled pictures are CELLS x CELLS, the paper's bottleneck


def pooled(answer: Tensor) -> Tensor:
    """Return features ``(batch, at most 64)`` of an answer ``(batch, *shape)``: a picture's channel
    mean in 8 x 8 cells.
    """
    if answer.ndim == 4:
        return F.adaptive_avg_pool2d(answer.mean(1), CELLS).flatten(1)
    flat = answer.flatten(1)
    return flat if flat.shape[1] <= CELLS**2 else F.adaptive_avg_pool1d(flat, CELLS**2)


class MidpointPredictor(Policy):
    """The network that decides midpoints.

    Its plan suits :class:`~indis.solvers.Midpoint`, whose slope at the midpoint s_dir scales. As a
    ``plugin`` it suits a multistep solver, and s_dir stretches the whole second sub-step.

    Args:
        base: the nodes between steps, ``(1, N + 1)``.
        schedule: noise schedule of the denoiser.
        bounds: of s_dir and s_time.
        size: number of features.
        features: which: the network's own ("bottleneck"), or those of its pooled "answer".
        plugin: whether the solver is a multistep one.
        analytic_first: whether the first answer is analytic; zeros are then read, as published.
        width: of the hidden layer.
    """

    base: Tensor

    def __init__(
        self,
        base: Tensor,
        schedule: NoiseSchedule,
        bounds: MidpointBounds,
        *,
        size: int,
        features: Features = "bottleneck",
        plugin: bool = False,
        analytic_first: bool = False,
        width: int = 128,
    ) -> None:
        super().__init__()
        self.register_buffer("base", shared_grid(base))
        self.schedule, self.bounds, self.analytic_first = schedule, bounds, analytic_first
        self.size, self.features, self.plugin, self.width = size, features, plugin, width
        self.steps, self.order = 2 * (base.shape[1] - 1), 0 if plugin else 1
        self.rows = ("r", *(name for name in ("s_dir", "s_time") if getattr(bounds, name)))
        self.code = nn.Sequential(nn.Linear(size, width), nn.SiLU(), nn.Linear(width, CODE))
        self.embedding = nn.Linear(EMBEDDING, EMBEDDING)
        self.head = nn.Linear(CODE + 2 * EMBEDDING, len(self.rows))
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(
        self, noise: Tensor, features: Tensor | None = None, index: Tensor | None = None
    ) -> MidpointPlan:
        """Return a plan for one run; neither noise nor condition decides anything by itself."""
        return MidpointPlan(self)

    def predict(
        self, features: Tensor, start: Tensor, stop: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return r, s_dir and s_time, each ``(batch,)``.

        Args:
            features: ``(batch, size)``.
            start: time of the step's start, ``(1,)``.
            stop: time of its end, ``(1,)``.

        Raises:
            ValueError: if the features have another size.
        """
        if features.shape[1] != self.size:
            raise ValueError(f"features must be (batch, {self.size}), got {tuple(features.shape)}")
        times = torch.cat([self._embedded(start), self._embedded(stop)], dim=1)
        code = self.code(features.to(times))
        out = self.head(torch.cat([code, times.expand(len(code), -1)], dim=1))
        raw = dict(zip(self.rows, out.unbind(1), strict=True))
        none = torch.zeros_like(raw["r"])
        s_dir, s_time = (
            self.bounds.scale(name, raw.get(name, none)) for name in ("s_dir", "s_time")
        )
        return fraction(raw["r"]), s_dir, s_time

    def describe(self) -> dict[str, Any]:
        """Return what it is built from."""
        return {
            "schedule": describe(self.schedule),
            "bounds": asdict(self.bounds),
            "network": {name: getattr(self, name) for name in NETWORK},
        }

    @classmethod
    def rebuild(cls, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Self:
        """Return the policy of this description and state."""
        schedule = rebuild(config["schedule"], SCHEDULES)
        bounds = from_fields(MidpointBounds, config["bounds"])
        network = exactly(config["network"], NETWORK)
        policy = cls(tensors["base"], schedule, bounds, **network)
        policy.load_state_dict(dict(tensors))
        return policy

    def _embedded(self, t: Tensor) -> Tensor:
        """Sines and cosines of t at frequencies from 1 to 1e-4, through a layer, ``(1, 8)``."""
        half = EMBEDDING // 2
        exponent = torch.arange(half, dtype=t.dtype) / (half - 1)
        angle = t[:, None] * torch.exp(-math.log(1e4) * exponent)
        waves = torch.cat([angle.sin(), angle.cos()], dim=1)
        return F.silu(self.embedding(waves.to(self.head.weight)))


class MidpointPlan:
    """The plan of one run: even sub-steps go to a midpoint, odd ones to the next node."""

    keep: Keep = "data"  # see indis.methods.midpoint_table
    to_zero = False

    def __init__(self, policy: MidpointPredictor) -> None:
        self.policy, self.steps = policy, policy.steps
        self.needs_features = policy.features == "bottleneck"
        self.s_dir: Tensor | None = None  # of the midpoint under way

    def start(self) -> tuple[Tensor, Tensor]:
        """Return the first node, which is not shifted."""
        first = self.policy.base[:, 0]
        return first, torch.zeros_like(first)

    def decide(self, k: int, x: Tensor, answer: Tensor, features: Tensor | None = None) -> Decision:
        """Go to a midpoint after the answer at a node, and to the next node after that."""
        step, inside = divmod(k, 2)
        policy, (start, stop) = self.policy, self.policy.base[:, step : step + 2].split(1, dim=1)
        start, stop = start[:, 0], stop[:, 0]
        if not inside:
            seen = self._read(step, answer, features)
            r, self.s_dir, s_time = policy.predict(seen, start, stop)
            tau = between(policy.schedule, policy.bounds.domain, start, stop, r)
            return Decision(torch.ones_like(tau), tau, noisier(policy.schedule, tau, s_time))
        assert self.s_dir is not None
        one, none = torch.ones_like(self.s_dir), torch.zeros_like(stop)
        if policy.plugin:
            return Decision(one, stop, none, stretch=self.s_dir)
        return Decision(one, stop, none, weights=(self.s_dir - 1)[:, None])

    def _read(self, step: int, answer: Tensor, features: Tensor | None) -> Tensor:
        """Features ``(batch, size)``; zeros where no network was asked, as published."""
        if self.policy.features == "answer":
            analytic = self.policy.analytic_first and step == 0
            features = None if analytic else pooled(answer.detach())
        if features is None:
            return torch.zeros(len(answer), self.policy.size, device=answer.device)
        return features


@dataclass(frozen=True)
class AMED(TwoStage):
    """AMED-Solver, with the paper's values. ``features="answer"`` serves any denoiser.

    Raises:
        ValueError: for unknown features, or a width below one.
    """

    name: ClassVar[str] = "amed"

    solver: str = "midpoint"
    """midpoint, or a multistep solver without corrector."""
    s_dir: float = 0.01
    """Largest change b of the slope at a midpoint: a factor 1 - b ... 1 + b."""
    s_time: float = 0.0
    """Largest change b of the noise level told at a midpoint: a factor 1 - b ... 1 + b."""
    features: Features = "bottleneck"
    """What the network reads besides times."""
    width: int = 128
    """Width of the hidden layer."""
    recipe: Recipe = field(default_factory=lambda: Recipe(lr=5e-3))
    """How it is tuned."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_least(self, width=1)
        require_choice("features", self.features, Features)

    def untrained(self, denoiser: Denoiser) -> Sampler:
        """Return the midpoint rule, or the multistep solver on nodes and midpoints.

        Raises:
            ValueError: if the denoiser lacks the features.
        """
        solver = solvers.named(self.solver)
        base = self.base(denoiser.schedule)
        # The initial weights are part of the seed, and drawing them must not disturb the caller's
        # generator.
        with seeded(self.recipe.seed):
            policy = MidpointPredictor(
                base,
                denoiser.schedule,
                self.bounds(denoiser),
                size=_feature_size(denoiser, self.features),
                features=self.features,
                plugin=not isinstance(solver, Midpoint),
                analytic_first=self.analytic_first,
                width=self.width,
            )
        return Sampler(policy, solver, self.analytic_first)

    def _check_solver(self, solver: Solver) -> None:
        if solver != Midpoint() and not isinstance(solver, MULTISTEP):
            raise ValueError(
                "solver must be midpoint or a multistep one without corrector for AMED, "
                f"got {self.solver!r}"
            )


@dataclass(frozen=True)
class AMEDPlugin(AMED):
    """On iPNDM, with the authors' values for CIFAR-10."""

    name: ClassVar[str] = "amed-plugin"

    solver: str = "ipndm:4"
    """midpoint, or a multistep solver without corrector."""
    grid: str = "natural"
    """Grid that a fit starts at."""
    s_time: float = 0.2
    """Largest change of the noise level told at a midpoint; published: 0.2 or 0."""


def _feature_size(denoiser: Denoiser, features: Features) -> int:
    """The number of features, from one call: a network tells only when it is asked."""
    with torch.no_grad():
        times = torch.full((1,), denoiser.schedule.t_max, dtype=TIME_DTYPE)
        still = torch.zeros(1, *denoiser.shape)
        x, t = (to_device_of(v, denoiser) for v in (still, times))
        condition = to_device_of(denoiser.condition([0]), denoiser)
        if features == "answer":
            return pooled(denoiser(x, t, condition)).shape[1]
        if not isinstance(denoiser, FeatureDenoiser):
            raise ValueError(
                f"AMED needs a denoiser with with_features(), which {denoiser.name!r} lacks; "
                "features='answer' does not"
            )
        return denoiser.with_features(x, t, condition)[1].shape[1]

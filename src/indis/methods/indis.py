"""INDIS (arXiv 2603.17671): a plan of its own for every sample, learned from teacher end points.

Its baselines, ablations and extensions are fields, not copies:

=============================  =======================================================
field                          what it gives
=============================  =======================================================
``reads="nothing"``            one learned plan for all samples (GOD)
``reads="noise"``              the paper's phi(x_T, c), the default
``reads="answers"``            plans made after evaluations too (look); beyond the paper
``dtau=0``, ``gamma=0``        without time shifts, without scales
``use_condition=False``        phi reads the noise alone
``keep="answer"``              a shift changes the data prediction, as in Eq. 5
``weights=b``                  also corrects multistep weights by up to b
``picture="both"``             also corrects every place of the sample (local)
``fewest=3``                   one phi for every N from 3 to ``steps`` (every-n)
=============================  =======================================================
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import Tensor

from indis import grids, solvers
from indis.checks import require_choice, require_least
from indis.denoise import Denoiser
from indis.endpoints import Endpoints
from indis.logits import Bounds, Shift
from indis.losses import Loss
from indis.methods.method import Method
from indis.noise import Domain
from indis.numerics import seeded
from indis.plan import Keep
from indis.policies import LearnedPolicy, Reads, Replan
from indis.recipe import Recipe
from indis.sampler import Sampler
from indis.sensitivity import balancing_scale, sensitivity
from indis.tuning import Fit

Places = Literal["none", "weights", "free", "both"]


@dataclass(frozen=True)
class INDIS(Method):
    """One fit; the base grid is where an untrained policy starts.

    Paper: iPNDM, LPIPS, an analytic first step "when it helps"; the order is ours. ``None`` means
    what suits the denoiser's schedule (see :meth:`Bounds.natural`).

    Raises:
        ValueError: for a number outside its range, or choices that do not fit together.
    """

    name: ClassVar[str] = "indis"

    reads: Reads = "noise"
    """What a plan is made from: nothing, the noise (phi), or the network's answers too."""
    use_condition: bool = True
    """Read the condition besides the noise."""
    replan: Replan = "every"
    """With answers read: plan once, after the first one, or anew at every node."""
    dtau: float = 0.5
    """Largest time shift, b of Eq. 6, in the unit of --shift; 0 for none."""
    gamma: float = 0.5
    """Largest change of the output scale, b of Eq. 6; 0 for none."""
    weights: float = 0.0
    """Largest correction of the multistep weights, beyond the paper; 0 for none."""
    picture: Places = "none"
    """With answers read: correct each place by weights, a free picture, or both."""
    picture_width: int = 24
    """Channels of the network that corrects places."""
    shift: Shift | None = None
    """Unit of a time shift: log-SNR, the next interval, or time. None suits the schedule."""
    keep: Keep = "data"
    """What a time shift leaves as it is. answer is the paper's Eq. 5 as it stands."""
    domain: Domain | None = None
    """Domain in which nodes are spread. None is what suits the schedule."""
    fewest: int | None = None
    """Smallest number of steps of a policy for a range, whose largest is --steps."""
    emphasis: float = 1.0
    """Of a range: iterations of N are in proportion to 1 / N to this power."""
    width: int = 128
    """Width of the hidden layers of phi."""
    depth: int = 3
    """Number of hidden layers of phi."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_least(self, width=1, depth=1, picture_width=1)
        require_choice("reads", self.reads, Reads)
        require_choice("replan", self.replan, Replan)
        require_choice("picture", self.picture, Places)
        self._bounds(self.shift or "relative", self.domain or "log_snr")
        if self.picture != "none" and self.reads != "answers":
            raise ValueError(
                f"reads must be answers to correct places, got {self.reads!r} with picture "
                f"{self.picture!r}"
            )
        once = self.reads == "answers" and self.replan == "first" and self.picture == "none"
        if once and self.analytic_first:
            raise ValueError(
                "replan must be every with an analytic first step, whose answer says nothing new"
            )
        self._check_range()

    def _check_range(self) -> None:
        if self.fewest is None:
            return
        if not 1 <= self.fewest <= self.steps:
            raise ValueError(f"fewest must be in 1 ... steps = {self.steps}, got {self.fewest}")
        if not 0 <= self.emphasis <= 10:
            raise ValueError(f"emphasis must be in 0 ... 10, got {self.emphasis}")
        if self.reads == "answers":
            raise ValueError("reads must be nothing or noise for a range of steps, got 'answers'")
        if solvers.named(self.solver).nfe(self.fewest) - self.analytic_first < 1:
            raise ValueError(
                f"fewest must be above {self.fewest} with an analytic first step: no call is left"
            )

    @property
    def freedoms(self) -> str:
        """Also how places are corrected."""
        picture = "" if self.picture == "none" else f"+local {self.picture}"
        return super().freedoms + picture

    def bounds(self, denoiser: Denoiser) -> Bounds:
        """Return the bounds in the terms of a denoiser's schedule."""
        natural = Bounds.natural(denoiser.schedule)
        return self._bounds(self.shift or natural.shift, self.domain or natural.domain)

    def _bounds(self, shift: Shift, domain: Domain) -> Bounds:
        return Bounds(self.dtau, self.gamma, self.weights, shift, domain, self.keep)

    def untrained(self, denoiser: Denoiser) -> Sampler:
        """Return the base solver, bit for bit, of a range at every number of steps."""
        solver, grid = solvers.named(self.solver), grids.named(self.grid)
        fewest = self.steps if self.fewest is None else self.fewest
        bases = [grid(denoiser.schedule, steps) for steps in range(fewest, self.steps + 1)]
        # The initial weights are part of the seed, and drawing them must not disturb the caller's
        # generator.
        with seeded(self.recipe.seed):
            policy = LearnedPolicy(
                bases,
                denoiser.schedule,
                self.bounds(denoiser),
                order=solver.memory,
                reads=self.reads,
                to_zero=grids.ends_at_zero(denoiser.schedule, bases[-1]),
                **self._network(denoiser),
            )
        return Sampler(policy, solver, self.analytic_first)

    def _network(self, denoiser: Denoiser) -> dict[str, Any]:
        """What a policy that reads is built from."""
        if self.reads == "nothing":
            return {}
        features = denoiser.condition([0]).features if self.use_condition else None
        network: dict[str, Any] = {
            "shape": tuple(denoiser.shape),
            "condition_dim": 0 if features is None else features.shape[-1],
            "width": self.width,
            "depth": self.depth,
        }
        if self.reads == "answers":
            network |= {"native": denoiser.native, "replan": self.replan}
        if self.picture != "none":
            network |= {"picture": self.picture, "picture_width": self.picture_width}
        return network

    def tuning(
        self, denoiser: Denoiser, data: Endpoints, loss: Loss, *, start: Sampler | None = None
    ) -> Fit:
        """Return the gradient descent.

        Args:
            denoiser: the model.
            data: the teacher's end points.
            loss: of a batch, one number a sample.
            start: a fitted shared plan that phi begins at, to learn what a sample adds to it.

        Raises:
            ValueError: if ``start`` is not a shared plan, or phi cannot begin there.
        """
        sampler = self.untrained(denoiser)
        policy = sampler.policy
        assert isinstance(policy, LearnedPolicy)
        if start is not None:
            self._start_at(policy, sampler, start)
        elif self.recipe.probes:
            probes = self.recipe.split(data)[0][: self.recipe.probes]
            for steps in policy.counts:
                rms = sensitivity(
                    sampler.at(steps), denoiser, probes, loss, batch=self.recipe.scarce
                )
                policy.at(steps).logits.scale.copy_(balancing_scale(rms))
        if self.fewest is None:
            return Fit(sampler, denoiser, data, loss, self.recipe)
        return RangeFit(sampler, denoiser, data, loss, self.recipe, self.emphasis)

    def _start_at(self, policy: LearnedPolicy, sampler: Sampler, start: Sampler) -> None:
        shared = start.policy
        if self.reads == "nothing" or self.fewest is not None:
            raise ValueError("start must be left out unless phi of one number of steps is fitted")
        if not isinstance(shared, LearnedPolicy) or shared.reads != "nothing":
            raise ValueError(
                f"start must be a fitted shared plan, got a {type(shared).__name__} that is none"
            )
        if (start.solver, start.analytic_first) != (sampler.solver, sampler.analytic_first):
            raise ValueError(
                f"start must have been fitted on {sampler.solver} with analytic_first "
                f"{sampler.analytic_first}, got {start.solver} with {start.analytic_first}"
            )
        policy.start_at(shared)


@dataclass(frozen=True)
class GOD(INDIS):
    """The paper's "globally optimised discretization": one plan for all samples."""

    name: ClassVar[str] = "god"

    reads: Reads = "nothing"
    """What a plan is made from: nothing, so all samples share it."""


@dataclass(frozen=True)
class Look(INDIS):
    """Plans made after evaluations too, with corrected weights. Beyond the paper."""

    name: ClassVar[str] = "look"

    reads: Reads = "answers"
    """What a plan is made from: the network's answers too."""
    weights: float = 0.5
    """Largest correction of the multistep weights; 0 for none."""


@dataclass(frozen=True)
class Local(Look):
    """*Look* with corrections of every place. Beyond the paper."""

    name: ClassVar[str] = "local"

    picture: Places = "both"
    """What corrects each place: weights, a free picture, or both."""
    width: int = 96
    """Width of the hidden layers of phi; smaller, so that both networks stay cheap."""


@dataclass(frozen=True)
class EveryN(INDIS):
    """One phi for every number of steps from ``fewest`` to ``steps``. Beyond the paper."""

    name: ClassVar[str] = "every-n"

    steps: int = 10
    """Largest number of steps."""
    fewest: int | None = 3
    """Smallest number of steps."""


def turns(counts: Sequence[int], emphasis: float, iterations: int) -> list[int]:
    """Return the number of steps that each iteration tunes, in proportion to ``N ** -emphasis`` and
    as evenly interleaved as whole iterations allow.
    """
    share = {n: (min(counts) / n) ** emphasis for n in counts}
    whole, had, order = sum(share.values()), dict.fromkeys(counts, 0), list[int]()
    for number in range(1, iterations + 1):
        lacks = {n: number * share[n] / whole - had[n] for n in counts}
        order.append(max(counts, key=lacks.__getitem__))
        had[order[-1]] += 1
    return order


class RangeFit(Fit):
    """A fit for several numbers of steps, one in each iteration.

    Losses at different N differ by orders of magnitude, so each is divided by its own value, and
    the policy that is kept has the best geometric mean over N.
    """

    def __init__(
        self,
        sampler: Sampler,
        denoiser: Denoiser,
        data: Endpoints,
        loss: Loss,
        recipe: Recipe,
        emphasis: float,
    ) -> None:
        super().__init__(sampler, denoiser, data, loss, recipe)
        self.emphasis = emphasis
        self.samplers = {steps: self.sampler.at(steps) for steps in self.sampler.policy.counts}
        self.turns = turns(tuple(self.samplers), emphasis, recipe.iterations)

    def validate(self) -> float:
        """Return the geometric mean of the held-out losses over all numbers of steps."""
        losses = [self.validate_at(steps) for steps in self.samplers]
        return math.exp(sum(math.log(max(loss, 1e-30)) for loss in losses) / len(losses))

    def validate_at(self, steps: int) -> float:
        """Return the held-out loss at one number of steps."""
        return self.heldout_loss(self.samplers[steps])

    def objective(self, step: int) -> Tensor:
        """Return the mean loss of the batch of a step, at the number of steps whose turn it is."""
        index = self.batch(step)
        return self.losses(self.samplers[self.turns[step]], self.train[index], index).mean()

    @property
    def relative(self) -> bool:
        """Always: losses at different N must count alike."""
        return True

    def _subject(self) -> dict[str, Any]:
        return super()._subject() | {"emphasis": self.emphasis}

"""AMED (Zhou et al., CVPR 2024; arXiv 2312.00094): a network decides each sample's next midpoint
from U-Net features.

AMED-Solver is a midpoint rule whose midpoint, slope scale and time scale the network decides step
by step; AMED-Plugin is a multistep solver that takes node and midpoint for two steps of its own.
``solver`` says which: "midpoint", or a multistep solver's name.

The paper fits each step to the teacher's state with the step's start given. Here, as for all
methods, the loss is on end points and gradients flow through the whole run, except into the
features. Further departures: a stored set of end points (there fresh noise, 10 000 images in
batches of 128 on CIFAR-10); the rate warms up and follows the shared cosine; gradients are clipped;
the last layer begins at zero; and ``s_dir`` is the same for every solver (the released code has
0.05 for the plugin on DPM-Solver++).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from indis import grids, solvers
from indis.checks import require_choice, require_least
from indis.denoise import Denoiser, FeatureDenoiser, to_device_of
from indis.methods.two_stage import TwoStage
from indis.numerics import seeded
from indis.policies import MidpointPredictor
from indis.policies.predictor import Features, pooled
from indis.sampler import Sampler
from indis.solvers import DEIS, IPNDM, AdamsBashforth, DPMSolverPP, Euler, Midpoint, Solver
from indis.tuning import Recipe

MULTISTEP = (Euler, IPNDM, AdamsBashforth, DEIS, DPMSolverPP)


@dataclass(frozen=True)
class AMED(TwoStage):
    """AMED-Solver, with the paper's values. ``features="answer"`` serves denoisers without a
    bottleneck.

    Raises:
        ValueError: for unknown features, or a width below one.
    """

    s_dir: float = 0.01  # the slope at a midpoint is scaled by at most 1 - b ... 1 + b
    s_time: float = 0.0  # the noise level told at a midpoint is scaled by at most 1 - b ... 1 + b
    features: Features = "bottleneck"  # what the network reads besides times
    width: int = 128  # of the hidden layer
    recipe: Recipe = field(default_factory=lambda: Recipe(lr=5e-3))

    def __post_init__(self) -> None:
        super().__post_init__()
        require_least(self, width=1)
        require_choice("features", self.features, Features)

    def untrained(self, denoiser: Denoiser) -> Sampler:
        """The midpoint rule, or the multistep solver on nodes and midpoints."""
        solver = solvers.named(self.solver)
        base = grids.named(self.grid)(denoiser.schedule, self.steps)
        # The network's initial weights are part of the experiment's seed, and must not disturb the
        # caller's generator.
        with seeded(self.recipe.seed):
            policy = MidpointPredictor(
                base,
                denoiser.schedule,
                self.bounds(denoiser),
                size=_feature_size(denoiser, self.features),
                features=self.features,
                plugin=not isinstance(solver, Midpoint),
                width=self.width,
            )
        policy.analytic_first = self.analytic_first
        return Sampler(policy, solver, self.analytic_first)

    def _check_solver(self, solver: Solver) -> None:
        if solver != Midpoint() and not isinstance(solver, MULTISTEP):
            raise ValueError(
                f"solver must be midpoint or a multistep one without corrector for AMED, got {self.solver!r}"
            )


@dataclass(frozen=True)
class AMEDPlugin(AMED):
    """On iPNDM, with the authors' values for CIFAR-10."""

    # midpoint, or a multistep solver without corrector
    solver: str = "ipndm:4"
    # where it starts: natural (polynomial:7, or uniform for a flow), uniform, log_snr, polynomial,
    # quadratic, vp_time, flow_shift or resolution, as name[:parameter], or list:T0,T1,... of times
    grid: str = "natural"
    # the noise level told at a midpoint is scaled by at most 1 - b ... 1 + b; published: 0.2, or 0
    # by data set
    s_time: float = 0.2


def _feature_size(denoiser: Denoiser, features: Features) -> int:
    """How many features there are, from one call: a network tells only when it is asked."""
    with torch.no_grad():
        times = torch.full((1,), denoiser.schedule.t_max, dtype=torch.float64)
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

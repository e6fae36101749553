"""What ``import indis`` offers: the one list of public names."""

from indis import artifact, grids, hub, losses, methods, solvers
from indis.denoise import UNCONDITIONAL, Condition, Counted, Denoiser, Form, Wrapped, convert
from indis.endpoints import (
    Endpoints,
    TeachConfig,
    endpoint_batches,
    gather,
    load_endpoints,
    noise_from_seeds,
    teach,
    teach_folder,
)
from indis.guidance import Guided
from indis.logits import Bounds, from_logits
from indis.methods import GOD, INDIS, Method, heuristic
from indis.noise import (
    EDM,
    DiscreteVP,
    LinearVP,
    NoiseSchedule,
    RectifiedFlow,
    ScaledLinearVP,
    TableVP,
    prior,
)
from indis.plan import Decision, Discretization
from indis.policies import Fixed, LearnedPolicy, Policy
from indis.recipe import Recipe
from indis.sampler import Sampler
from indis.solvers import (
    DEIS,
    IPNDM,
    AdamsBashforth,
    DPMSolverPP,
    Euler,
    Heun,
    Midpoint,
    Solver,
    Stepper,
    UniPC,
    solve,
    trajectory,
)
from indis.tuning import Fit, Progress

__all__ = [
    "DEIS",
    "EDM",
    "GOD",
    "IPNDM",
    "UNCONDITIONAL",
    "AdamsBashforth",
    "Bounds",
    "Condition",
    "Counted",
    "DPMSolverPP",
    "Decision",
    "Denoiser",
    "DiscreteVP",
    "Discretization",
    "Endpoints",
    "Euler",
    "Fit",
    "Recipe",
    "Fixed",
    "Form",
    "Guided",
    "Heun",
    "INDIS",
    "LearnedPolicy",
    "LinearVP",
    "Method",
    "Midpoint",
    "NoiseSchedule",
    "Policy",
    "Progress",
    "RectifiedFlow",
    "Sampler",
    "ScaledLinearVP",
    "TableVP",
    "Solver",
    "Stepper",
    "TeachConfig",
    "UniPC",
    "Wrapped",
    "artifact",
    "convert",
    "endpoint_batches",
    "from_logits",
    "gather",
    "grids",
    "heuristic",
    "hub",
    "load_endpoints",
    "losses",
    "methods",
    "noise_from_seeds",
    "prior",
    "solve",
    "solvers",
    "teach",
    "teach_folder",
    "trajectory",
]

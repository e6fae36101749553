"""Few-step diffusion and flow sampling with a discretization of its own for every sample.

A **noise schedule** says what t means; a **denoiser** answers at (x, t); a **discretization** (tau,
dtau, gamma) says where and how to ask; a **solver** turns tau into coefficients; a **policy** turns
(x_T, c) into a discretization; a **method** learns a policy from **teacher endpoints**.
"""

from indis import artifact, grids, losses, methods, models, solvers
from indis.denoise import UNCONDITIONAL, Condition, Counted, Denoiser, Form, Wrapped, convert
from indis.endpoints import (
    Endpoints,
    TeachConfig,
    endpoint_batches,
    gather,
    load_endpoints,
    noise_from_seeds,
    teach_folder,
)
from indis.guidance import Guided
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
from indis.plan import Bounds, Decision, Discretization, from_logits
from indis.policies import Fixed, Global, Instance, PerSample, Policy
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
    UniPC,
    solve,
    trajectory,
)
from indis.tuning import Fit, Progress, Recipe

__version__ = "0.1.0"

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
    "Global",
    "Guided",
    "Heun",
    "INDIS",
    "Instance",
    "LinearVP",
    "Method",
    "Midpoint",
    "NoiseSchedule",
    "PerSample",
    "Policy",
    "Progress",
    "RectifiedFlow",
    "Sampler",
    "ScaledLinearVP",
    "TableVP",
    "Solver",
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
    "load_endpoints",
    "losses",
    "methods",
    "models",
    "noise_from_seeds",
    "prior",
    "solve",
    "solvers",
    "teach_folder",
    "trajectory",
]

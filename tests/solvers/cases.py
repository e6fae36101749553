"""Solvers, problems and plans that the tests of the loop share."""

import pytest
import torch

from indis import (
    DEIS,
    EDM,
    IPNDM,
    AdamsBashforth,
    Discretization,
    DPMSolverPP,
    Form,
    LinearVP,
    RectifiedFlow,
    UniPC,
    grids,
)
from indis.solvers import SOLVERS as REGISTERED
from indis.solvers import Midpoint
from problems import Bumpy, seeded

# Every registered solver as it is by default, and more of those that have parameters. Midpoint,
# whose steps are several of the plan's, has a file of its own.
PLAIN = [kind() for kind in REGISTERED.values() if kind is not Midpoint]
MORE = [
    IPNDM(1),
    IPNDM(3),
    IPNDM(4),
    AdamsBashforth(2),
    AdamsBashforth(4),
    AdamsBashforth(3, True),
    DEIS(3),
    DEIS(3, True),
    DPMSolverPP(1),
    DPMSolverPP(2),
    DPMSolverPP(3, False),
    UniPC(1),
    UniPC(2, "bh1"),
    UniPC(3),
    UniPC(3, "bh1", False),
]
SOLVERS = list(dict.fromkeys(PLAIN + MORE))
PROBLEMS = {
    "flow": Bumpy(RectifiedFlow(0.02, 0.95), Form.VELOCITY),
    "edm": Bumpy(EDM(0.05, 3.0), Form.NOISE),
    "vp": Bumpy(LinearVP(t_min=0.02), Form.DATA),
}
each_solver = pytest.mark.parametrize("solver", SOLVERS, ids=repr)
each_problem = pytest.mark.parametrize("problem", PROBLEMS.values(), ids=PROBLEMS)


def plan_for(problem: Bumpy, rows: int, steps: int, order: int, seed: int = 0) -> Discretization:
    """Different grids, shifts, scales and weight corrections in every row."""
    schedule = problem.schedule
    base = grids.log_snr(schedule, steps)
    wobble = 0.3 * torch.tanh(seeded(rows, steps + 1, seed=seed))
    inside = base[:, 1:-1] + (wobble * base.diff(dim=1).abs().min())[:, 1:-1]
    tau = torch.cat([base[:, :1].expand(rows, 1), inside, base[:, -1:].expand(rows, 1)], dim=1)
    dtau = 0.1 * tau[:, :-1] * torch.tanh(seeded(rows, steps, seed=seed + 1))
    gamma = 1 + 0.1 * seeded(rows, steps, seed=seed + 2)
    return Discretization(tau, dtau, gamma, 0.05 * seeded(rows, steps, order, seed=seed + 3)).check(
        schedule
    )

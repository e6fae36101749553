"""Every solver computes what it did at commit 999ab87, before the loop was made fast."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from indis import solve, solvers
from problems import DATA, seeded
from solvers.cases import PROBLEMS, plan_for

GOLDEN = load_file(DATA / "golden_999ab87.safetensors")
NAMES = [name for name in GOLDEN if name.startswith("solver/")]


def test_all_solvers_are_among_the_stored_cases():
    stored = {name.split("/")[1].partition("(")[0] for name in NAMES}
    assert stored == {kind.__name__ for kind in solvers.SOLVERS.values()} and len(NAMES) > 400


@pytest.mark.parametrize("name", NAMES)
def test_samples_are_those_of_the_earlier_loop(name):
    _, text, problem_name, order, keep, afs = name.split("/")
    solver, problem = eval(text, vars(solvers)), PROBLEMS[problem_name]
    x = seeded(3, 2, seed=9)
    if isinstance(solver, solvers.Midpoint):
        plan = replace(plan_for(problem, 3, 6, 1), weights=None, keep=keep)
    else:
        x = x * float(
            problem.schedule.sigma(torch.tensor(problem.schedule.t_max, dtype=torch.float64))
        )
        plan = replace(plan_for(problem, 3, 5, max(int(order), 1)), keep=keep)
        plan = plan if int(order) else replace(plan, weights=None)
    end = solve(problem, x, plan, solver, analytic_first=bool(int(afs)))
    torch.testing.assert_close(end, GOLDEN[name], rtol=1e-9, atol=1e-9)

"""SpanLift: the plan stays the base's, and only places are corrected."""

import pytest
import torch

from indis import solvers
from indis.methods import METHODS
from indis.policies import Fixed
from indis.sampler import Sampler
from methods.cases import CASES
from small_cases import toy, toy_pairs

METHOD = CASES["spanlift"]


def test_an_untrained_network_is_the_base_solver_bit_for_bit():
    data, base = toy_pairs(8), METHOD.base(toy().schedule)
    plain = Sampler(Fixed(base), solvers.named(METHOD.solver))
    assert torch.equal(METHOD.untrained(toy())(toy(), data.noise), plain(toy(), data.noise))


def test_a_fit_moves_samples_and_not_the_plan_that_it_begins_at():
    data = toy_pairs(96)
    loss = torch.nn.MSELoss(reduction="none")
    god = METHODS["god"](steps=3, solver="euler", grid="uniform").with_recipe(
        iterations=5, batch=16, holdout=16, probes=0
    )
    shared = god.tuning(toy(), data, lambda a, b: loss(a, b).mean(1))
    list(shared.run())
    fit = METHOD.with_recipe(iterations=20, batch=32).tuning(
        toy(), data, lambda a, b: loss(a, b).mean(1), start=shared.sampler
    )
    list(fit.run())
    before, after = (s.policy for s in (shared.sampler, fit.sampler))
    assert torch.equal(after.base.shared_plan().tau, before.shared_plan().tau)
    assert fit.improved and fit.best < fit.initial_loss
    assert not any(p is t for p in after.parameters() for t in after.base.buffers())


def test_a_start_whose_plans_are_not_shared_is_refused():
    phi = CASES["indis"].untrained(toy())
    with pytest.raises(ValueError, match="all samples share, got one of noise"):
        METHOD.tuning(toy(), toy_pairs(96), lambda a, b: a.sum(1), start=phi)

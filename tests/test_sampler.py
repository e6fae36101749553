"""What a sampler refuses because it would be silently wrong, and what of a plan it takes as it
is."""

import pytest
import torch

from indis import (
    EDM,
    INDIS,
    IPNDM,
    Discretization,
    Euler,
    Fixed,
    Form,
    RectifiedFlow,
    Sampler,
    UniPC,
    Wrapped,
    grids,
    heuristic,
)
from indis.methods import LD3, Local, Look
from indis.solvers import Midpoint
from problems import Bumpy, GoldenMixture, seeded
from small_cases import sentence

EXPLODING, FLOW = GoldenMixture(), Bumpy(RectifiedFlow(0.02, 0.95))
NOISE = seeded(4, 2, seed=1)


def refusal(sampler, denoiser=FLOW, noise=NOISE, **given):
    with pytest.raises(ValueError) as error:
        sampler(denoiser, noise, **given)
    return sentence(error)


def test_a_frozen_plan_of_another_schedule_is_told_by_its_times():
    plan = LD3(steps=3).untrained(EXPLODING).policy.frozen()
    assert "tau must lie in [0.02, 0.95], got [0.002, 80]" in refusal(Sampler(plan, UniPC(3)))
    late = Fixed(grids.uniform(RectifiedFlow(0.02, 0.9), 3))
    assert "tau must begin at t_max = 0.95, got 0.9" in refusal(Sampler(late, Euler()))


def test_samples_of_another_shape_are_refused():
    model = Wrapped(lambda x, t, condition: 0.1 * x, FLOW.schedule, (3,), "velocity")
    sampler = INDIS(steps=2, width=8).untrained(FLOW)
    assert "denoiser must have a shape that the sampler's network reads, (2,), got (3,)" in refusal(
        sampler, model, torch.zeros(4, 3)
    )


@pytest.mark.parametrize("kind", [Look, Local])
def test_what_looks_at_answers_refuses_them_in_another_form(kind):
    schedule = EDM()

    def model(form):
        return Wrapped(lambda x, t, condition: torch.tanh(x), schedule, (2,), form)

    sampler = kind(steps=3, width=8).untrained(model("noise"))
    assert sampler(model("noise"), NOISE).shape == NOISE.shape
    assert "denoiser must answer in the sampler's form, noise, got data" in refusal(
        sampler, model(Form.DATA)
    )


def test_a_plan_has_one_row_or_one_for_each_sample():
    plan = Discretization.plain(grids.uniform(FLOW.schedule, 3).expand(3, -1))
    sampler = Sampler(Fixed(plan), Euler())
    assert sampler(FLOW, NOISE[:3]).shape == (3, 2)
    for rows in (1, 2, 4):
        said = refusal(sampler, noise=NOISE[:rows])
        assert f"tau must have one row, or one for each of the {rows} samples, got 3" in said


def test_corrections_of_answers_that_a_step_does_not_use_are_refused():
    tau = grids.uniform(FLOW.schedule, 3)
    plain = Discretization.plain(tau)
    plan = Discretization(tau, plain.dtau, plain.gamma, torch.full((1, 3, 3), 0.1))
    assert Sampler(Fixed(plan), IPNDM(3))(FLOW, NOISE).isfinite().all()
    with pytest.raises(ValueError) as error:
        Sampler(Fixed(plan), Euler())
    said = "weights must correct at most the 1 answers that a step of Euler() uses, got 3"
    assert said in sentence(error)


def test_no_condition_has_a_name():
    assert "condition must be a Condition, UNCONDITIONAL if there is none, got None" in refusal(
        heuristic(FLOW, solver="euler", grid="uniform", steps=2), condition=None
    )


@pytest.mark.parametrize("solver", [Euler(), IPNDM(3), UniPC(3)], ids=repr)
def test_columns_in_single_precision_are_computed_with_in_double(solver):
    schedule = RectifiedFlow(0.25, 0.75)  # ends that single precision has exactly
    model, tau = Bumpy(schedule), grids.uniform(schedule, 4)
    plan = Discretization(tau.float(), torch.zeros(1, 4), torch.ones(1, 4))
    assert {column.dtype for column in plan.columns().values()} == {torch.float64}
    expected = Sampler(Fixed(tau), solver)(model, NOISE)
    assert torch.equal(Sampler(Fixed(plan), solver)(model, NOISE), expected)


def test_a_rule_of_midpoints_needs_whole_steps_from_the_start():
    with pytest.raises(ValueError, match="steps must be a multiple of 2, points") as error:
        heuristic(FLOW, solver="midpoint", grid="uniform", steps=3)
    sentence(error)
    assert Sampler(Fixed(grids.uniform(FLOW.schedule, 4)), Midpoint()).nfe == 4

"""LD3: the published formula, two rounds, latents that move only as far as told and only if it
helps."""

import math
from dataclasses import replace

import pytest
import torch

from fits import advance, state
from indis import EDM, Form, LinearVP, Recipe, RectifiedFlow, Wrapped, grids, noise_from_seeds
from indis.denoise import convert
from indis.losses import squared_distance
from indis.methods import LD3
from problems import Bumpy, GoldenMixture, seeded
from small_cases import same_tensors, sentence, toy, toy_pairs

GOLDEN = GoldenMixture()
FLOW = RectifiedFlow(0.02, 0.95)
STEPS = 4
SMALL = Recipe(iterations=14, batch=8, holdout=32, validate_every=1)


def start(loss=squared_distance, **changes):
    method = LD3(**{"steps": 3, "recipe": SMALL, "pairs": 24, "radius": 0.05} | changes)
    return method.tuning(toy(), toy_pairs(), loss)


def losses_at(process, latents):
    """Of every training pair, from these latents."""
    with torch.no_grad():
        end = process.sampler(toy(), latents, process.train.condition)
    return squared_distance(end, process.train.target)


@pytest.mark.parametrize(
    ("denoiser", "even"), [(GOLDEN, grids.log_snr), (Bumpy(FLOW), grids.uniform)]
)
def test_it_starts_even_in_log_snr_for_edm_and_in_time_for_the_rest(denoiser, even):
    plan = LD3(steps=STEPS).untrained(denoiser).policy.shared_plan()
    assert torch.equal(plan.tau.detach(), even(denoiser.schedule, STEPS))
    assert float(plan.dtau.detach().abs().max()) == 0


def test_another_grid_is_another_start_and_another_domain_another_coordinate():
    start = LD3(steps=STEPS, grid="polynomial:7").untrained(GOLDEN).policy
    assert torch.equal(start.shared_plan().tau.detach(), grids.polynomial(EDM(), STEPS))
    in_time = LD3(steps=STEPS, domain="time").untrained(GOLDEN).policy
    assert torch.equal(in_time.shared_plan().tau.detach(), grids.uniform(EDM(), STEPS))


def test_the_first_round_moves_stamps_alone_and_the_second_both():
    process = start()
    before = state(process)
    advance(process, 4)
    assert process.method.stamp_iterations == 4
    middle = state(process)
    assert not torch.equal(middle["stamps"], before["stamps"])
    assert torch.equal(middle["shifts"], before["shifts"])
    advance(process, 1)
    assert not torch.equal(state(process)["shifts"], before["shifts"])


def test_the_second_round_begins_at_the_best_of_the_first():
    process = start(stamp_lr=3.0, patience=100)
    advance(process, 4)
    assert not same_tensors(state(process), process.best_state)
    expected = process.best_state["stamps"].clone()
    process._descend = lambda step: None
    advance(process, 1)
    assert torch.equal(state(process)["stamps"], expected)


def test_the_second_round_begins_with_rates_and_momentum_afresh():
    process = start()
    advance(process, 4)
    process.slowed, process.worse = 0.1, 2
    process._judge = lambda: None
    advance(process, 1)
    assert (process.slowed, process.worse) == (1.0, 0)
    assert [slots["step"].item() for slots in process.optimizer.state.values()] == [1]


def test_first_steps_have_the_published_sizes():
    """RMSprop's first step is ten times the rate a stamp; plain descent of a clipped gradient is at
    most the rate."""
    process = start(
        loss=lambda a, b: 1e6 * squared_distance(a, b),
        recipe=replace(SMALL, holdout=0),
        objective="hard",
    )
    advance(process, 1)
    assert state(process)["stamps"].abs().tolist()[0] == pytest.approx([5e-2] * 3, rel=1e-3)
    advance(process, 4)
    assert float(state(process)["shifts"].norm()) == pytest.approx(0.001 / 3, rel=1e-3)
    wider = start(
        loss=lambda a, b: 1e6 * squared_distance(a, b),
        recipe=replace(SMALL, holdout=0, clip=0.5),
        shift_lr=0.06,
    )
    advance(wider, 5)
    assert float(state(wider)["shifts"].norm()) == pytest.approx(0.5 * 0.06 / 3, rel=1e-3)


def test_a_stuck_fit_goes_back_to_the_best_plan_with_smaller_rates():
    process = start(stamp_lr=50.0, patience=3, stamp_rounds=1, shift_rounds=0, objective="hard")
    states = advance(process, 2)
    assert min(s.heldout for s in states) > process.best
    assert not same_tensors(state(process), process.best_state)
    advance(process, 1)
    assert same_tensors(state(process), process.best_state)
    assert (process.worse, process.slowed) == (0, 0.8)
    advance(process, 1)
    assert process.optimizer.param_groups[0]["lr"] == pytest.approx(40.0)


def test_rates_do_not_fall_below_the_published_least():
    process = start(stamp_lr=6e-5, decay=1e-3)
    process.slowed = 1e-3
    advance(process, 1)
    assert process.optimizer.param_groups[0]["lr"] == 5e-5


def test_with_a_plan_that_stands_still_no_latent_leaves_its_ball_and_no_loss_rises():
    process = start(recipe=replace(SMALL, iterations=30))
    process._descend = lambda step: None
    origin = process.train.noise.clone()
    before = first = losses_at(process, process.latents)
    for _ in process.run():
        after = losses_at(process, process.latents)
        assert (after <= before * (1 + 1e-5)).all()
        before = after
    away = (process.latents - origin).norm(dim=1)
    assert process.radius == pytest.approx(0.05 * 2 / 9)
    assert float(away.max()) <= process.radius * (1 + 1e-4)
    assert float(away.max()) > 0.99 * process.radius
    assert (after < 0.995 * first).all()
    assert torch.equal(process.train.noise, origin)


def test_a_latent_that_oversteps_stays_where_it_is():
    """In a ball that never ends the published rate is far too large for some pairs and not for
    others."""
    process = start(recipe=replace(SMALL, batch=24, holdout=0), radius=1e6, latent_lr=60.0)
    process._descend = lambda step: None
    before = losses_at(process, process.latents)
    advance(process, 1)
    moved = (process.latents != process.train.noise).any(1)
    after = losses_at(process, process.latents)
    assert 0 < int(moved.sum()) < 24
    assert torch.equal(after < before, moved)


def test_a_step_that_does_not_help_is_not_taken():
    """The trial asks for a loss of its own; here it is always told that things got worse."""

    def sceptical(student, teacher):
        value = squared_distance(student, teacher)
        return value if student.requires_grad else value + 1e3

    process = start(loss=sceptical)
    advance(process, 6)
    assert torch.equal(process.latents, process.train.noise)


def test_a_latent_moves_by_its_own_gradient_whatever_the_batch():
    """With a ball that never ends and a plan that stands still, one step of plain descent."""
    moved = []
    for batch in (8, 24):
        process = start(recipe=replace(SMALL, batch=batch, holdout=0), radius=1e6, latent_lr=0.03)
        process._descend = lambda step: None
        advance(process, 24 // batch)
        moved.append(process.latents)
    latent = toy_pairs().noise[:24].clone().requires_grad_()
    squared_distance(process.sampler(toy(), latent), toy_pairs().target[:24]).sum().backward()
    for latents in moved:
        torch.testing.assert_close(
            latents, latent.detach() - 0.03 / 3 * latent.grad, rtol=1e-4, atol=1e-5
        )


def test_the_hard_objective_leaves_the_latents_and_the_soft_one_does_not():
    soft, hard = start(objective="soft"), start(objective="hard")
    for process in (soft, hard):
        list(process.run())
        assert torch.equal(process.train.noise, toy_pairs().noise[:24])
    assert torch.equal(hard.latents, hard.train.noise)
    assert not torch.equal(soft.latents, soft.train.noise)
    assert not same_tensors(state(soft), state(hard))


def test_it_is_judged_on_latents_that_have_not_moved():
    process = start()
    list(process.run())
    with torch.no_grad():
        end = process.sampler(toy(), noise_from_seeds(range(64, 96), toy().shape))
    assert process.best == pytest.approx(
        squared_distance(end, toy_pairs().target[64:]).mean().item(), rel=1e-5
    )


def test_it_learns_from_the_first_pairs_alone():
    assert len(start(pairs=24).train) == 24
    assert len(start(pairs=1000).train) == len(toy_pairs()) - 32


@pytest.mark.parametrize("objective", ["soft", "hard"])
@pytest.mark.parametrize("holdout", [0, 32])
@pytest.mark.parametrize("stop", [2, 4, 9])
def test_a_resumed_fit_repeats_the_uninterrupted_one_bit_for_bit(
    tmp_path, stop, holdout, objective
):
    """In the middle of the first round, between the two, and in the middle of the second."""
    changes = {
        "recipe": replace(SMALL, holdout=holdout),
        "objective": objective,
        "stamp_lr": 0.1,
        "patience": 2,
    }
    straight = start(**changes)
    expected = list(straight.run())
    first = start(**changes)
    begun = advance(first, stop)
    first.save(tmp_path / "checkpoint.safetensors", {"data": "toy"})
    second = start(**changes)
    second.resume(tmp_path / "checkpoint.safetensors", {"data": "toy"})
    assert second.step == stop
    assert begun + list(second.run()) == expected
    assert same_tensors(state(second), state(straight))
    assert torch.equal(second.latents, straight.latents)
    assert (second.worse, second.slowed) == (straight.worse, straight.slowed)
    assert holdout == 0 or straight.slowed < 1


def test_resuming_under_another_method_is_refused(tmp_path):
    process = start()
    advance(process, 2)
    process.save(tmp_path / "checkpoint.safetensors")
    with pytest.raises(ValueError, match="another configuration"):
        start(radius=0.06).resume(tmp_path / "checkpoint.safetensors")


def test_a_loss_that_is_not_finite_stops_with_the_best_plan():
    asked = iter(range(100))

    def spoiled(student, teacher):
        value = squared_distance(student, teacher)
        return value * math.nan if student.requires_grad and next(asked) == 2 else value

    process = start(loss=spoiled)
    with pytest.raises(FloatingPointError, match="not finite at iteration 3"):
        list(process.run())
    assert same_tensors(state(process), process.best_state)


def test_a_start_is_refused():
    with pytest.raises(ValueError) as error:
        LD3(steps=3).tuning(
            toy(), toy_pairs(), squared_distance, start=LD3(steps=3).untrained(toy())
        )
    assert "start must be left out for LD3" in sentence(error)


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"steps": 1}, "steps must be at least 2, got 1"),
        ({"pairs": 0}, "pairs must be at least 1, got 0"),
        ({"patience": 0}, "patience must be at least 1, got 0"),
        ({"stamp_rounds": -1}, "stamp_rounds must be at least 0, got -1"),
        (
            {"stamp_rounds": 0, "shift_rounds": 0},
            "stamp_rounds + shift_rounds must be at least 1, got 0",
        ),
        ({"stamp_lr": 0.0}, "stamp_lr must be positive and finite, got 0.0"),
        ({"shift_lr": -1.0}, "shift_lr must be positive and finite, got -1.0"),
        ({"latent_lr": math.inf}, "latent_lr must be positive and finite, got inf"),
        ({"radius": math.nan}, "radius must be positive and finite, got nan"),
        ({"win_rate": 1.0}, "win_rate must be in [0, 1), got 1.0"),
        ({"decay": 0.0}, "decay must be in (0, 1], got 0.0"),
        ({"objective": "firm"}, "objective must be soft or hard, got 'firm'"),
    ],
)
def test_settings_that_make_no_sense_are_refused(fields, told):
    with pytest.raises(ValueError) as error:
        LD3(**fields)
    assert sentence(error) == told


def test_an_unknown_domain_is_refused():
    with pytest.raises(ValueError) as error:
        LD3(steps=3, domain="lambda").untrained(toy())
    assert sentence(error) == "domain must be time or log_snr, got 'lambda'"


@pytest.mark.parametrize(
    ("schedule", "native"), [(EDM(), Form.NOISE), (FLOW, Form.VELOCITY), (LinearVP(), Form.NOISE)]
)
def test_a_solver_of_data_predictions_uses_what_the_network_meant_at_the_told_time(
    schedule, native
):
    """As in the released code, which turns answers into data at the told time: the form of the
    answer cannot matter."""

    def data(x, t, condition):
        return 0.5 * torch.tanh(x / (1 + t[:, None]))

    def other(x, t, condition):
        return convert(data(x, t, condition), Form.DATA, native, x=x, schedule=schedule, t=t)

    def end(function, form):
        method = LD3(steps=STEPS, solver="unipc:3:bh1", domain="log_snr")
        sampler = method.untrained(denoiser := Wrapped(function, schedule, (3,), form))
        with torch.no_grad():
            sampler.policy.shifts.copy_(torch.tensor([[0.8, -0.6, 0.5]]))
            return sampler(
                denoiser, seeded(2, 3), denoiser.condition([0, 1])
            ), sampler.policy.shared_plan()

    (meant, plain), (used, plan) = end(data, Form.DATA), end(other, native)
    assert torch.equal(plain.tau, plan.tau) and plan.dtau.abs().amax() > 0
    torch.testing.assert_close(used, meant, rtol=1e-9, atol=1e-11)


def test_a_solver_that_keeps_answers_as_they_are_uses_them_unscaled():
    sampler = LD3(steps=STEPS, solver="ipndm:3").untrained(GOLDEN)
    with torch.no_grad():
        sampler.policy.shifts.copy_(torch.tensor([[0.8, -0.6, 0.5]]))
    assert sampler.policy.shared_plan().gamma.eq(1).all()


def test_a_rate_below_the_least_one_stays_as_it_is_given():
    process = start(stamp_lr=1e-7)
    advance(process, 2)
    assert [group["lr"] for group in process.optimizer.param_groups] == [1e-7]

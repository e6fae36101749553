"""Fitting on the toy, three Euler steps: it helps, repeats itself, resumes, and stops with
something good in hand."""

import itertools
import math
from dataclasses import replace

import pytest
import torch

from fits import advance, finish, start, state
from indis import Bounds, Counted, Fit, Fixed, LearnedPolicy, Recipe, Sampler, grids, solvers
from indis.losses import mse, squared_distance
from indis.recipe import rate_at
from indis.storage import save_tensors
from methods.cases import CASES
from small_cases import same_tensors, sentence, toy, toy_pairs


@pytest.mark.parametrize("header", [None, [], {"config": {}, "meta": None, "step": 1}])
def test_a_file_that_something_else_wrote_is_no_checkpoint(tmp_path, header):
    save_tensors(tmp_path / "checkpoint.safetensors", {"policy.free": torch.zeros(1)}, header)
    with pytest.raises(
        ValueError, match=r"safetensors is no checkpoint .*missing from its header"
    ) as error:
        start().resume(tmp_path / "checkpoint.safetensors")
    sentence(error)


class Spoiled:
    """The squared distance, but the loss of one training iteration is spoiled."""

    def __init__(self, iteration, spoil):
        self.iteration, self.spoil, self.count = iteration, spoil, 0

    def __call__(self, student, teacher):
        value = squared_distance(student, teacher)
        self.count += student.requires_grad
        return (
            self.spoil(value) if student.requires_grad and self.count == self.iteration else value
        )


SPOILS = {
    "the loss": lambda value: value * math.nan,
    "the gradient": lambda value: value + (value - value.detach()).sqrt(),
}


@pytest.mark.parametrize(("per_instance", "lr", "factor"), [(False, 0.1, 0.1), (True, 0.1, 0.1)])
def test_a_fit_lowers_the_heldout_loss(per_instance, lr, factor):
    process = start(per_instance, iterations=60, batch=64, lr=lr, validate_every=10)
    before = process.validate()
    finish(process)
    assert process.validate() < factor * before


def judged(process, *values) -> Fit:
    """The same fit, whose held-out losses are these: before it, and then at each look."""
    told = iter(values)
    process.validate = lambda: next(told)
    return process


def test_afterwards_the_policy_is_the_best_one_on_heldout_endpoints():
    process = judged(start(), 9.0, 0.4, 0.1, 0.3, 0.2)
    seen = {s.step: (s.heldout, state(process)) for s in process.run()}
    assert {step: heldout for step, (heldout, _) in seen.items() if heldout} == {
        3: 0.4,
        6: 0.1,
        9: 0.3,
        12: 0.2,
    }
    assert process.best == 0.1
    assert same_tensors(state(process), seen[6][1]) and not same_tensors(
        state(process), seen[12][1]
    )


def test_a_fit_that_only_gets_worse_keeps_the_base_solver():
    process = start(lr=1e3, iterations=3, validate_every=1)
    before = state(process)
    heldout = [s.heldout for s in process.run()]
    assert min(heldout) > process.best
    assert same_tensors(state(process), before)


def test_without_heldout_endpoints_the_last_state_stays():
    process, best = start(holdout=0), None
    for progress in process.run():
        assert progress.heldout is None
        last, best = state(process), progress.best
    assert best == math.inf
    assert same_tensors(state(process), last)
    assert not same_tensors(last, state(start(holdout=0)))


def test_the_same_seed_gives_the_same_bits_and_another_seed_others():
    first, second, other = (finish(start(seed=seed)) for seed in (0, 0, 1))
    assert same_tensors(state(first), state(second))
    assert first.best == second.best
    assert not same_tensors(state(first), state(other))


def test_a_fit_does_not_depend_on_the_callers_random_numbers():
    torch.manual_seed(1)
    first = finish(start())
    torch.manual_seed(2)
    before = torch.get_rng_state()
    second = finish(start())
    assert torch.equal(torch.get_rng_state(), before)
    assert same_tensors(state(first), state(second))


@pytest.mark.parametrize("per_instance", [False, True])
@pytest.mark.parametrize("holdout", [0, 32])
@pytest.mark.parametrize("stop", [1, 6, 7])
def test_a_resumed_fit_repeats_the_uninterrupted_one_bit_for_bit(
    tmp_path, per_instance, holdout, stop
):
    straight = start(per_instance, holdout=holdout)
    expected = list(straight.run())
    first = start(per_instance, holdout=holdout)
    begun = advance(first, stop)
    first.save(tmp_path / "checkpoint.safetensors", {"data": "toy"})
    second = start(per_instance, holdout=holdout)
    second.resume(tmp_path / "checkpoint.safetensors", {"data": "toy"})
    assert second.step == stop
    assert same_tensors(state(second), state(first))
    assert same_tensors(second.best_state, first.best_state)
    assert begun + list(second.run()) == expected
    assert same_tensors(state(second), state(straight))
    assert same_tensors(second.best_state, straight.best_state)


def test_a_resumed_fit_remembers_a_best_state_that_it_has_left(tmp_path):
    process = judged(start(), 9.0, 0.4, 0.1, 0.3, 0.2)
    advance(process, 12)
    assert not same_tensors(process.best_state, state(process))
    process.save(tmp_path / "checkpoint.safetensors")
    other = start()
    other.resume(tmp_path / "checkpoint.safetensors")
    assert other.best == process.best
    assert list(other.run()) == []
    assert same_tensors(state(other), process.best_state)


def test_resuming_under_another_config_is_refused_and_changes_nothing(tmp_path):
    path = tmp_path / "checkpoint.safetensors"
    process = start()
    advance(process, 2)
    process.save(path, {"data": 1})
    for other, meta in (
        (start(lr=1e-3), {"data": 1}),
        (start(iterations=13), {"data": 1}),
        (start(), {"data": 2}),
    ):
        before = state(other)
        with pytest.raises(ValueError) as error:
            other.resume(path, meta)
        assert f"{path} was written with another configuration" in sentence(error)
        assert other.step == 0 and same_tensors(state(other), before)


@pytest.mark.parametrize("spoil", SPOILS.values(), ids=SPOILS)
def test_a_loss_that_is_not_finite_stops_with_the_best_heldout_policy(spoil):
    changes = {"lr": 0.1, "validate_every": 2}
    reference = start(**changes)
    first = state(reference)
    advance(reference, 5)
    assert not same_tensors(state(reference), reference.best_state)
    assert not same_tensors(first, reference.best_state)
    process = start(loss=Spoiled(6, spoil), **changes)
    with pytest.raises(FloatingPointError) as error:
        finish(process)
    assert "not finite at iteration 6" in sentence(error)
    assert process.step == 5
    assert same_tensors(state(process), reference.best_state)
    assert process.validate() == pytest.approx(reference.best, rel=1e-6)


@pytest.mark.parametrize("spoil", SPOILS.values(), ids=SPOILS)
def test_without_heldout_endpoints_a_loss_that_is_not_finite_leaves_the_last_good_parameters(spoil):
    reference = start(holdout=0)
    advance(reference, 5)
    process = start(loss=Spoiled(6, spoil), holdout=0)
    with pytest.raises(FloatingPointError, match="iteration 6"):
        finish(process)
    assert same_tensors(state(process), state(reference))
    assert not same_tensors(state(process), state(start()))


def test_recomputing_network_calls_changes_their_number_and_no_loss():
    plain, again = (Counted(toy()) for _ in range(2))
    losses = [
        [s.loss for s in start(denoiser=d, recompute=flag, iterations=4, holdout=0).run()]
        for d, flag in ((plain, False), (again, True))
    ]
    assert losses[0] == losses[1]
    assert plain.calls == 4 * 3
    assert again.calls == 4 * 3 * 2


class Recording(Sampler):
    """Remembers which training rows each iteration asks for."""

    def __call__(self, denoiser, noise, condition, *, index=None, recompute=False):
        if index is not None:
            self.seen.append(index.tolist())
            assert torch.equal(noise, toy_pairs().noise[index])
        return super().__call__(denoiser, noise, condition, index=index, recompute=recompute)


def batches(**changes):
    process = start(per_instance=False, **changes)
    recording = Recording(process.sampler.policy, process.sampler.solver)
    recording.seen = []
    process.sampler = recording
    finish(process)
    return recording.seen


def test_an_epoch_visits_every_training_row_once_and_no_heldout_row():
    seen = batches(iterations=8)
    first, second = (sum(seen[i : i + 4], []) for i in (0, 4))
    assert sorted(first) == sorted(second) == list(range(64))
    assert first != second
    assert batches(iterations=8, seed=1)[0] != seen[0]


def test_a_batch_larger_than_the_data_takes_every_row():
    assert batches(iterations=2, batch=1000) == [list(range(64))] * 2


@pytest.mark.parametrize("holdout", [96, 97])
def test_a_heldout_part_as_large_as_the_data_is_refused(holdout):
    with pytest.raises(ValueError) as error:
        start(holdout=holdout)
    assert sentence(error) == f"holdout must be below the number of endpoints, got {holdout} of 96"


def test_a_policy_without_parameters_is_refused():
    plain = Sampler(Fixed(grids.uniform(toy().schedule, 3)), solvers.Euler())
    frozen = start().sampler
    frozen.policy.requires_grad_(False)  # as a loaded artifact is
    for sampler in (plain, frozen):
        with pytest.raises(ValueError, match="nothing to learn"):
            Fit(sampler, toy(), toy_pairs(), mse, Recipe(holdout=0))


def test_a_network_learns_its_shared_offset_faster_than_its_weights():
    """Adam's first step is the rate itself, whatever the gradient."""
    process = start(iterations=1, lr=0.1, holdout=0)
    before = state(process)
    finish(process)
    moved = {
        name: (value - before[name]).abs().max().item() for name, value in state(process).items()
    }
    assert moved["by_steps.3.table"] == pytest.approx(0.1, rel=1e-3)
    assert moved["by_steps.3.head"] == pytest.approx(0.1 * 0.03, rel=1e-3)
    assert moved["by_steps.3.base"] == 0


def test_a_network_waits_until_the_shared_plan_has_settled():
    process = start(iterations=4, lr=0.1, holdout=0, settle=0.5)
    seen = [state(process)]
    for _ in process.run():
        seen.append(state(process))
    moves = [
        {name: not torch.equal(a[name], b[name]) for name in a} for a, b in itertools.pairwise(seen)
    ]
    assert [move["by_steps.3.table"] for move in moves] == [True] * 4
    assert [move["by_steps.3.head"] for move in moves] == [False, False, True, True]


def test_a_fit_that_settles_for_another_time_does_not_resume(tmp_path):
    process = start(iterations=4)
    advance(process, 2)
    process.save(tmp_path / "checkpoint.safetensors")
    with pytest.raises(ValueError, match="another configuration"):
        start(iterations=4, settle=0.5).resume(tmp_path / "checkpoint.safetensors")


def oracle(batch, **changes):
    data = toy_pairs(48)
    base = grids.uniform(toy().schedule, 3)
    bounds = Bounds.natural(toy().schedule, dtau=0.9, gamma=0.9)
    policy = LearnedPolicy(base, toy().schedule, bounds, samples=len(data))
    config = Recipe(batch=batch, holdout=0, lr=0.1, clip=1e9, **changes)
    return Fit(Sampler(policy, solvers.Euler()), toy(), data, squared_distance, config)


def test_a_plan_of_its_own_for_each_sample_beats_one_for_all():
    process = oracle(48, iterations=25)
    losses = [s.loss for s in process.run()]
    shared = start(per_instance=False, iterations=60, batch=96, lr=0.1, holdout=0)
    for progress in shared.run():
        best_shared = progress.loss
    assert losses[-1] < 0.2 * losses[0]
    assert losses[-1] < 0.5 * best_shared


def test_a_batch_moves_the_plans_of_its_own_samples_alone():
    process = oracle(5, iterations=1)
    finish(process)
    moved = process.sampler.policy.logits.table.detach().abs().sum((1, 2)) > 0
    assert moved.sum().item() == 5


def test_the_learning_rate_falls_along_a_cosine_to_zero():
    assert [rate_at(step, 100, 0.2) for step in (0, 50, 100)] == pytest.approx([0.2, 0.1, 0])
    assert rate_at(25, 100, 0.2) == pytest.approx(0.1 * (1 + 0.5**0.5))


def test_the_learning_rate_rises_in_a_straight_line_first():
    factors = [rate_at(k, 100, 0.2, 10) / rate_at(k, 100, 0.2) for k in (0, 4, 9, 10, 60)]
    assert factors == pytest.approx([0.1, 0.5, 1, 1, 1])
    with pytest.raises(ValueError, match="warmup must be in"):
        Recipe(warmup=1)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("iterations", 0),
        ("batch", 0),
        ("holdout", -1),
        ("validate_every", 0),
        ("lr", 0.0),
        ("lr", math.nan),
        ("lr", math.inf),
        ("clip", -1),
    ],
)
def test_settings_that_make_no_sense_are_refused(field, value):
    with pytest.raises(ValueError, match=f"{field}.* must be"):
        Recipe(**{field: value})


def test_a_gradient_is_clipped_to_its_norm():
    process = start(per_instance=False, clip=1e-3)
    process.optimizer = torch.optim.SGD(process.sampler.policy.parameters(), lr=1.0)
    before = state(process)
    advance(process, 1)
    rate = rate_at(0, 12, 2e-2, 1.2)
    moved = torch.cat([(value - before[name]).flatten() for name, value in state(process).items()])
    assert moved.norm().item() == pytest.approx(1e-3 * rate, rel=1e-3)


def test_a_relative_loss_has_the_gradient_of_its_logarithm_and_is_reported_as_it_is():
    def gradient(**changes):
        process = start(per_instance=False, clip=1e9, **changes)
        process.optimizer = torch.optim.SGD(process.sampler.policy.parameters(), lr=1.0)
        _, value = next(process.descent())
        return process.sampler.policy.logits.table.grad.clone(), value

    (absolute, value), (relative, reported) = gradient(), gradient(relative=True)
    assert reported == value
    torch.testing.assert_close(relative, absolute / value, rtol=1e-5, atol=0)


def test_a_relative_fit_does_not_depend_on_the_unit_of_the_loss():
    def fitted(unit, **changes):
        process = start(per_instance=False, **changes)
        process.loss = lambda student, teacher: unit * squared_distance(student, teacher)
        list(process.run())
        return torch.cat([value.flatten() for value in state(process).values()])

    torch.testing.assert_close(
        fitted(1024.0, relative=True), fitted(1.0, relative=True), rtol=1e-6, atol=1e-9
    )
    assert (
        fitted(1024.0) - fitted(1.0)
    ).abs().max() > 1e-3  # where clip bites in one unit and not in the other


@pytest.mark.parametrize("name", ["god", "indis", "local", "every-n"])
def test_with_recomputation_no_call_is_of_more_than_a_batch(name):
    """Measuring sensitivities and validating are no exceptions: who needs the switch has no memory
    for them."""
    counts = []

    class Heard:
        def __getattr__(self, name):
            return getattr(toy(), name)

        def __call__(self, x, t, condition):
            counts.append(len(x))
            return toy()(x, t, condition)

    method = CASES[name]
    fitting = replace(
        method.recipe, batch=7, holdout=20, iterations=2, validate_every=1, recompute=True
    )
    process = replace(method, recipe=fitting).tuning(Heard(), toy_pairs(96), squared_distance)
    list(process.run())
    assert max(counts) == 7

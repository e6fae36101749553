"""What `Wrapped` asks of its arguments, in which dtype it asks its function, and functions that
predict v."""

from dataclasses import replace

import pytest
import torch

from indis import (
    EDM,
    UNCONDITIONAL,
    Condition,
    DiscreteVP,
    Form,
    LinearVP,
    Recipe,
    RectifiedFlow,
    Sampler,
    Wrapped,
    endpoint_batches,
    gather,
    heuristic,
)
from indis.denoise import velocity_from_v
from indis.losses import mse
from indis.methods import INDIS, METHODS
from indis.noise import same_schedule
from problems import SCHEDULES, Gaussian, seeded
from small_cases import sentence, toy


def still(x, t, condition):
    return torch.zeros_like(x)


@pytest.mark.parametrize("form", Form)
def test_a_form_may_be_given_by_its_text(form):
    assert Wrapped(still, EDM(), (3,), form.value).native is form
    assert Wrapped(still, EDM(), [3], form) == Wrapped(still, EDM(), (3,), form.value)


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        ((EDM(), (3,), "score"), "native must be a Form or one of 'noise', 'data', 'velocity'"),
        ((EDM(), (3,), "v_prediction"), "(for v, Wrapped.from_v), got 'v_prediction'"),
        ((EDM(), (3,), None), "native must be a Form"),
        (
            (EDM(), 3, Form.NOISE),
            "shape must be a tuple of positive integers such as (3, 64, 64), got 3",
        ),
        ((EDM(), (3, 0), Form.NOISE), "shape must be a tuple of positive integers"),
        ((EDM(), (3.0,), Form.NOISE), "shape must be a tuple of positive integers"),
        ((EDM(), "3", Form.NOISE), "shape must be a tuple of positive integers"),
        (
            (EDM, (3,), Form.NOISE),
            "schedule must be a noise schedule such as RectifiedFlow(), got <class",
        ),
        (
            ("edm", (3,), Form.NOISE),
            "schedule must be a noise schedule such as RectifiedFlow(), got 'edm'",
        ),
    ],
)
def test_arguments_of_another_kind_are_refused(arguments, part):
    with pytest.raises(ValueError) as error:
        Wrapped(still, *arguments)
    assert part in sentence(error)


@pytest.mark.parametrize(
    ("given", "times"),
    [
        (torch.float16, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ],
)
def test_a_function_is_given_times_and_gives_samples_in_the_dtype_of_the_state(given, times):
    seen = []

    def falls(x, t, condition):
        seen.append(t.dtype)
        return -x * t[:, None].double()

    model = Wrapped(falls, RectifiedFlow(), (3,), Form.VELOCITY)
    drawn = heuristic(model, solver="euler", grid="uniform", steps=3)(
        model, seeded(4, 3, dtype=given)
    )
    assert drawn.dtype == given and set(seen) == {times}


def test_a_float32_network_of_the_time_can_be_wrapped_as_it_is():
    network = torch.nn.Linear(1, 3)
    model = Wrapped(lambda x, t, c: x + network(t[:, None]), RectifiedFlow(), (3,), Form.VELOCITY)
    assert (
        heuristic(model, solver="euler", grid="uniform", steps=3)(model, torch.ones(2, 3)).dtype
        == torch.float32
    )


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_function_that_predicts_v_is_a_denoiser_of_velocities(name):
    schedule = SCHEDULES[name]
    truth = {form: Gaussian(schedule, form) for form in Form}

    def predicts_v(x, t, condition):
        data, noise = truth[Form.DATA](x, t, condition), truth[Form.NOISE](x, t, condition)
        return schedule.alpha(t)[:, None] * noise - schedule.sigma(t)[:, None] * data

    model = Wrapped.from_v(predicts_v, schedule, (3,), name="of v")
    t = torch.linspace(schedule.t_min, schedule.t_max, 6, dtype=torch.float64)[1:-1]
    x = seeded(4, 3)
    assert (model.native, model.name) == (Form.VELOCITY, "of v")
    for one in (model, replace(model, name="copy")):
        answer = one(x, t, UNCONDITIONAL)
        torch.testing.assert_close(
            answer, truth[Form.VELOCITY](x, t, UNCONDITIONAL), rtol=1e-9, atol=1e-9
        )


@pytest.mark.parametrize(
    "schedule", [LinearVP(), DiscreteVP(), RectifiedFlow(), EDM()], ids=lambda s: type(s).__name__
)
def test_v_turned_into_a_velocity_is_the_velocity_at_both_ends_too(schedule):
    t = torch.tensor([schedule.t_min, schedule.t_max], dtype=torch.float64)
    alpha, sigma = schedule.alpha(t)[:, None], schedule.sigma(t)[:, None]
    data, noise = seeded(2, 3, seed=1), seeded(2, 3, seed=2)
    found = velocity_from_v(
        alpha * noise - sigma * data, x=alpha * data + sigma * noise, schedule=schedule, t=t
    )
    torch.testing.assert_close(found, noise - data, rtol=1e-11, atol=1e-11)


def test_a_sampler_refuses_a_denoiser_of_another_schedule():
    sampler = INDIS(steps=3, solver="euler", width=8).untrained(toy())
    other = Wrapped(still, LinearVP(), (2,), Form.NOISE)
    for run in (sampler, sampler.realized_plan):
        with pytest.raises(ValueError) as error:
            run(other, torch.ones(2, 2))
        assert "denoiser must have the schedule of the sampler, RectifiedFlow" in sentence(error)
    assert isinstance(sampler, Sampler) and sampler(toy(), torch.ones(2, 2)).shape == (2, 2)


def test_schedules_are_compared_by_value_and_those_that_cannot_be_by_their_class():
    class Own:
        pass

    assert (
        same_schedule(EDM(), EDM())
        and same_schedule(DiscreteVP(), DiscreteVP())
        and same_schedule(Own(), Own())
    )
    assert not same_schedule(EDM(), EDM(t_max=70)) and not same_schedule(EDM(), LinearVP())
    assert not same_schedule(EDM(), Own())


@pytest.mark.parametrize("answer", [lambda x: (x,), lambda x: {"sample": x}, lambda x: None])
def test_what_a_diffusers_model_returns_is_told_from_its_tensor(answer):
    model = Wrapped(lambda x, t, condition: answer(x), EDM(), (2,), "noise")
    with pytest.raises(
        TypeError,
        match=r"function must return a tensor, got \w+; of a diffusers model take .sample",
    ):
        model(torch.zeros(3, 2), torch.ones(3))


def test_rows_of_a_condition_are_no_names():
    condition = Condition({"text": torch.zeros(3, 4)})
    assert condition[:2].inputs["text"].shape == (2, 4)
    with pytest.raises(TypeError, match=r"the tensor 'text' is condition.inputs\['text'\]"):
        condition["text"]


@pytest.mark.parametrize("name", ["indis", "local", "ld3", "epd"])
def test_a_fit_leaves_the_network_as_it_is_frozen_or_not(name):
    network = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2))
    before = [p.detach().clone() for p in network.parameters()]

    def velocity(x, t, condition):
        return network(torch.cat([x, t[:, None].expand(-1, 1)], dim=1))

    model = Wrapped(velocity, RectifiedFlow(0.01, 0.98), (2,), "velocity")
    data = gather(
        list(
            endpoint_batches(
                model, heuristic(model, solver="euler", grid="uniform", steps=8), range(24)
            )
        )
    )
    method = METHODS[name](steps=2, grid="uniform", recipe=Recipe(iterations=3, batch=8, holdout=8))
    process = method.tuning(model, data, mse)
    list(process.run())
    assert all(p.requires_grad and p.grad is None for p in network.parameters())
    assert all(torch.equal(a, b) for a, b in zip(before, network.parameters(), strict=True))


def test_a_loss_gives_one_number_a_sample():
    model = Wrapped(lambda x, t, condition: 0.1 * x, RectifiedFlow(0.01, 0.98), (2,), "velocity")
    data = gather(
        list(
            endpoint_batches(
                model, heuristic(model, solver="euler", grid="uniform", steps=2), range(8)
            )
        )
    )
    method = METHODS["god"](steps=2, recipe=Recipe(iterations=1, batch=4, holdout=2, probes=0))
    with pytest.raises(ValueError, match=r"loss must give one number a sample, \(2,\), got \(\)"):
        next(method.tuning(model, data, torch.nn.functional.mse_loss).run())
    with pytest.raises(TypeError, match="loss must be a function"):
        method.tuning(model, data, "mse")

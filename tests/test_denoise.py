import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from indis import (
    EDM,
    INDIS,
    UNCONDITIONAL,
    Condition,
    Counted,
    Denoiser,
    DiscreteVP,
    Form,
    LinearVP,
    Recipe,
    RectifiedFlow,
    ScaledLinearVP,
    Wrapped,
    artifact,
    convert,
    endpoint_batches,
    gather,
    heuristic,
    losses,
    models,
    noise_from_seeds,
)
from indis.cli.sample import FixedLabels
from indis.denoise import ClassConditional, FeatureDenoiser
from indis.evaluate import counted_nfe
from indis.methods import AMED
from indis.models.fashion import class_condition
from problems import FORMS, Bumpy, Gaussian, GoldenMixture, Recording, seeded
from small_cases import TinyClasses, sentence, tiny_teacher

SCHEDULES = {
    "edm": EDM(),
    "rectified_flow": RectifiedFlow(),
    "linear_vp": LinearVP(),
    "scaled_linear_vp": ScaledLinearVP(),
    "discrete_vp": DiscreteVP(),
}
each = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
PAIRS = [(a, b) for a in FORMS for b in FORMS]


def sample(schedule, count: int = 5):
    """Data, noise, interior times and the noisy samples in between."""
    t = torch.linspace(schedule.t_min, schedule.t_max, count + 2, dtype=torch.float64)[1:-1]
    data, noise = seeded(count, 2, 3, seed=1), seeded(count, 2, 3, seed=2)
    alpha, sigma = schedule.alpha(t)[:, None, None], schedule.sigma(t)[:, None, None]
    return (
        alpha * data + sigma * noise,
        t,
        {Form.DATA: data, Form.NOISE: noise, Form.VELOCITY: noise - data},
    )


@each
@pytest.mark.parametrize(("source", "target"), PAIRS)
def test_conversions_turn_the_truth_in_one_form_into_the_truth_in_another(schedule, source, target):
    x, t, truth = sample(schedule)
    found = convert(truth[source], source, target, x=x, schedule=schedule, t=t)
    # Dividing by a small alpha or sigma magnifies the rounding of x by as much.
    scale = float(torch.maximum(1 / schedule.alpha(t), 1 / schedule.sigma(t)).max() * x.abs().max())
    torch.testing.assert_close(found, truth[target], rtol=0, atol=1e-14 * scale)


@each
@pytest.mark.parametrize(("source", "target"), PAIRS)
def test_conversions_there_and_back_change_nothing(schedule, source, target):
    x, t, _ = sample(schedule)
    value = seeded(5, 2, 3, seed=3)
    there = convert(value, source, target, x=x, schedule=schedule, t=t)
    back = convert(there, target, source, x=x, schedule=schedule, t=t)
    torch.testing.assert_close(back, value, rtol=1e-9, atol=1e-9)


def test_a_conversion_to_the_same_form_is_the_value_itself():
    value = seeded(2, 3)
    assert convert(value, Form.NOISE, Form.NOISE, x=value, schedule=EDM(), t=torch.ones(1)) is value


def test_a_shared_time_converts_like_the_same_time_in_every_row():
    schedule, x, value = LinearVP(), seeded(4, 3, seed=1), seeded(4, 3, seed=2)
    one, four = torch.tensor([0.4], dtype=torch.float64), torch.full((4,), 0.4, dtype=torch.float64)
    shared, single = (
        convert(value, Form.DATA, Form.NOISE, x=x, schedule=schedule, t=t) for t in (one, four)
    )
    torch.testing.assert_close(shared, single, rtol=0, atol=0)


def test_conversions_keep_single_precision():
    x, value = seeded(4, 3, dtype=torch.float32), seeded(4, 3, seed=1, dtype=torch.float32)
    t = torch.full((4,), 0.4, dtype=torch.float64)
    for source, target in PAIRS:
        assert convert(value, source, target, x=x, schedule=LinearVP(), t=t).dtype == torch.float32


@pytest.mark.parametrize("target", [Form.DATA, Form.NOISE])
def test_a_velocity_converts_at_both_ends_of_a_flow(target):
    x, velocity = seeded(2, 3, seed=1), seeded(2, 3, seed=2)
    t = torch.tensor([1.0, 0.0], dtype=torch.float64)
    found = convert(velocity, Form.VELOCITY, target, x=x, schedule=RectifiedFlow(), t=t)
    # at t = 1 the sample is the noise, at t = 0 it is the data
    expected = torch.stack(
        [x[0] - velocity[0], x[1]] if target is Form.DATA else [x[0], x[1] + velocity[1]]
    )
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_noise_from_data_exists_where_alpha_is_zero():
    x, data = seeded(1, 3, seed=1), seeded(1, 3, seed=2)
    t = torch.ones(1, dtype=torch.float64)
    for target, expected in ((Form.NOISE, x), (Form.VELOCITY, x - data)):
        found = convert(data, Form.DATA, target, x=x, schedule=RectifiedFlow(), t=t)
        torch.testing.assert_close(found, expected, rtol=0, atol=0)


@each
def test_scale_and_clock_are_the_ones_along_which_the_ode_moves(schedule):
    # d(x / s) = f dc on the exact path of a Gaussian, by central differences.
    middle = 0.5 * (schedule.t_min + schedule.t_max)
    step = 1e-5 * (schedule.t_max - schedule.t_min)
    t = torch.tensor([middle - step, middle, middle + step], dtype=torch.float64)
    for form in FORMS:
        problem = Gaussian(schedule, form)
        x = problem.exact(problem.start(1), torch.tensor(schedule.t_max, dtype=torch.float64), t)
        moved = (x / form.scale(schedule, t)[:, None]).diff(dim=0).sum(0)
        ticked = form.clock(schedule, t).diff().sum()
        value = problem(x[1:2], t[1:2], UNCONDITIONAL)[0]
        torch.testing.assert_close(moved / ticked, value, rtol=2e-4, atol=1e-6)


@each
def test_clocks_run_one_way(schedule):
    t = torch.linspace(schedule.t_max, schedule.t_min, 200, dtype=torch.float64)[1:-1]
    assert bool((Form.NOISE.clock(schedule, t).diff() < 0).all())
    assert bool((Form.VELOCITY.clock(schedule, t).diff() < 0).all())
    assert bool((Form.DATA.clock(schedule, t).diff() > 0).all())


@each
def test_the_velocity_form_is_finite_at_the_ends_and_where_alpha_is_zero(schedule):
    ends = torch.tensor([schedule.t_max, schedule.t_min], dtype=torch.float64)
    assert bool((Form.VELOCITY.scale(schedule, ends) > 0.9).all())
    clock = Form.VELOCITY.clock(schedule, ends)
    assert 0.9 < float(clock[0]) <= 1
    assert 0 <= float(clock[1]) < 0.1


@each
def test_the_gaussian_problem_answers_alike_in_every_form(schedule):
    t = torch.linspace(schedule.t_min, schedule.t_max, 5, dtype=torch.float64)[1:-1]
    x = seeded(3, 3, seed=4)
    data = Gaussian(schedule, Form.DATA)(x, t, UNCONDITIONAL)
    for form in FORMS:
        answer = Gaussian(schedule, form)(x, t, UNCONDITIONAL)
        found = convert(answer, form, Form.DATA, x=x, schedule=schedule, t=t)
        torch.testing.assert_close(found, data, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    "problem",
    [GoldenMixture(), Gaussian(EDM(), Form.DATA), Bumpy(), Counted(Bumpy()), Recording(Bumpy())],
    ids=lambda p: type(p).__name__,
)
def test_the_problems_of_these_tests_are_denoisers(problem):
    assert isinstance(problem, Denoiser)


def test_counting_counts_calls_and_samples_and_changes_no_answer():
    inner = Gaussian(EDM(), Form.NOISE)
    counted, x, t = Counted(inner), seeded(4, 3), torch.full((4,), 2.0, dtype=torch.float64)
    assert torch.equal(counted(x, t, UNCONDITIONAL), inner(x, t, UNCONDITIONAL))
    counted(x[:1], t[:1], UNCONDITIONAL)
    assert (counted.calls, counted.samples) == (2, 5)
    assert (counted.name, counted.fingerprint) == ("gaussian", "formula")
    assert (counted.shape, counted.native) == ((3,), Form.NOISE)
    assert counted.schedule == EDM()


def test_a_counter_passes_features_on_and_counts_the_call():
    model = models.load("toy")
    x, t = seeded(2, 2, dtype=torch.float32), torch.tensor([0.5, 0.2])
    counted, plain = Counted(model), Counted(Gaussian(EDM(), Form.NOISE))
    answer, features = counted.with_features(x, t, UNCONDITIONAL)
    expected = model.with_features(x, t, UNCONDITIONAL)
    assert torch.equal(answer, expected[0]) and torch.equal(features, expected[1])
    assert isinstance(counted, FeatureDenoiser) and not isinstance(plain, FeatureDenoiser)
    assert counted.calls == 1


def test_conditions_are_indexed_row_by_row_and_moved_as_a_whole():
    condition = Condition({"label": torch.arange(4)}, seeded(4, 2))
    some = condition[torch.tensor([3, 1])]
    assert some.inputs["label"].tolist() == [3, 1]
    torch.testing.assert_close(some.features, condition.features[[3, 1]], rtol=0, atol=0)
    assert condition[1:3].inputs["label"].tolist() == [1, 2]
    moved = condition.to("meta")
    assert moved.inputs["label"].device.type == moved.features.device.type == "meta"
    assert UNCONDITIONAL[:2].features is None
    assert dict(UNCONDITIONAL.inputs) == {}


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(sorted(SCHEDULES)),
    st.sampled_from(PAIRS),
    st.floats(0.01, 0.99),
    st.integers(0, 2**31),
)
def test_conversions_are_affine_in_the_value_and_the_sample(name, pair, fraction, seed):
    schedule, (source, target) = SCHEDULES[name], pair
    t = torch.tensor(
        [schedule.t_min + fraction * (schedule.t_max - schedule.t_min)], dtype=torch.float64
    )
    x, y, u, v = seeded(4, 2, 3, seed=seed)

    def change(value, at):
        return convert(value, source, target, x=at, schedule=schedule, t=t)

    together = change(2 * u - 3 * v, 2 * x - 3 * y)
    apart = 2 * change(u, x) - 3 * change(v, y)
    torch.testing.assert_close(
        together, apart, rtol=1e-9, atol=1e-9 * (1 + float(apart.abs().max()))
    )


def test_a_wrapped_function_is_all_that_a_fit_and_a_count_need(tmp_path):
    network = torch.nn.Linear(3, 3).requires_grad_(False)
    model = Wrapped(lambda x, t, c: torch.tanh(network(x)), RectifiedFlow(), (3,), Form.VELOCITY)
    assert isinstance(model, Denoiser)
    teacher = heuristic(model, solver="euler", grid="uniform", steps=12)
    data = gather(list(endpoint_batches(model, teacher, range(24))))
    fit = Recipe(iterations=2, batch=8, holdout=8)
    process = INDIS(steps=2, grid="uniform", width=8, depth=1, recipe=fit).tuning(
        model, data, losses.mse
    )
    assert len(list(process.run())) == 2
    assert counted_nfe(model, process.sampler) == 2
    artifact.save(process.sampler, tmp_path)
    assert torch.equal(
        artifact.load(tmp_path)(model, data.noise), process.sampler(model, data.noise)
    )


@pytest.mark.parametrize("answer", [lambda x: x[:, :2], lambda x: x[:, :1], lambda x: x.sum()])
def test_an_answer_of_another_shape_is_refused_rather_than_broadcast(answer):
    model = Wrapped(lambda x, t, c: answer(x), RectifiedFlow(), (3,), Form.VELOCITY)
    with pytest.raises(ValueError) as error:
        heuristic(model, solver="euler", grid="uniform", steps=2)(model, torch.ones(4, 3))
    assert "denoiser must answer in the shape of x, (4, 3), got" in sentence(error)


class Thinker:
    """A network that can return its hidden layer with its answer."""

    def __init__(self, shows=True):
        self.layer, self.shows = torch.nn.Linear(3, 5), shows

    def hidden(self, x):
        return torch.tanh(self.layer(x))

    def __call__(self, x, t, condition):
        hidden = self.hidden(x)
        answer = hidden[:, :3] + x
        return (answer, hidden) if self.shows else answer

    def wrapped(self, **given):
        return Wrapped(self, RectifiedFlow(), (3,), Form.VELOCITY, features=self.shows, **given)


def test_a_wrapped_function_has_features_and_classes_only_if_it_was_given_them():
    plain, shows = Thinker(False).wrapped(), Thinker().wrapped()
    asked = Thinker(False).wrapped(class_condition=TinyClasses().condition)
    every = (plain, shows, asked)
    assert [isinstance(model, FeatureDenoiser) for model in every] == [False, True, False]
    assert [isinstance(model, ClassConditional) for model in every] == [False, False, True]
    counted = [isinstance(Counted(model), FeatureDenoiser) for model in (plain, shows)]
    assert counted == [False, True]
    assert all(isinstance(model, Denoiser) for model in every)


def test_features_of_a_wrapped_function_come_with_the_answer_and_without_gradient():
    thinker = Thinker()
    model, x = thinker.wrapped(), seeded(4, 3, dtype=torch.float32)
    answer, features = model.with_features(x, torch.ones(4), UNCONDITIONAL)
    assert torch.equal(features, thinker.hidden(x)) and not features.requires_grad
    assert torch.equal(answer, model(x, torch.ones(4)))
    odd = Wrapped(lambda x, t, c: (x, torch.zeros(4, 2, 7)), EDM(), (3,), "noise", features=True)
    with pytest.raises(ValueError) as error:
        odd.with_features(x, torch.ones(4), UNCONDITIONAL)
    assert sentence(error) == "features must be (batch, size), got (4, 2, 7)"
    with pytest.raises(TypeError, match=r"function must return a pair of tensors"):
        Wrapped(lambda x, t, c: x, EDM(), (3,), "noise", features=True)(x, torch.ones(4))


def test_amed_reads_the_features_of_a_wrapped_function(tmp_path):
    thinker = Thinker()
    thinker.layer.requires_grad_(False)
    model = thinker.wrapped()
    teacher = heuristic(model, solver="euler", grid="uniform", steps=12)
    data = gather(list(endpoint_batches(model, teacher, range(24))))
    fit = Recipe(iterations=2, batch=8, holdout=8, lr=0.1)
    process = AMED(steps=2, grid="uniform", analytic_first=False, recipe=fit).tuning(
        model, data, losses.mse
    )
    assert len(list(process.run())) == 2
    sampler = process.sampler
    assert sampler.policy.size == 5
    with torch.no_grad():
        sampler.policy.head.weight.fill_(0.5)  # as after more training: the features decide
        drawn = sampler(model, data.noise)
        blind = Wrapped(
            lambda x, t, c: (thinker(x, t, c)[0], torch.zeros(len(x), 5)),
            RectifiedFlow(),
            (3,),
            Form.VELOCITY,
            features=True,
        )
        assert float((sampler(blind, data.noise) - drawn).abs().max()) > 1e-4
    artifact.save(sampler, tmp_path)
    with torch.no_grad():
        assert torch.equal(artifact.load(tmp_path)(model, data.noise), drawn)
    with pytest.raises(
        ValueError, match=r"with_features\(\), which this policy reads and 'wrapped'"
    ):
        sampler(Thinker(False).wrapped(), data.noise)


def test_a_wrapped_function_of_classes_is_asked_for_labels_as_a_model_family_is():
    tiny = TinyClasses()
    parts = (tiny, tiny.schedule, tiny.shape, tiny.native)
    wrapped = Wrapped(*parts, condition=tiny.condition, class_condition=tiny.condition)
    model = FixedLabels(wrapped, [3, 5])
    assert model.condition([0, 1, 2]).inputs["label"].tolist() == [3, 5, 3]
    with pytest.raises(ValueError) as error:
        FixedLabels(Wrapped(*parts, condition=tiny.condition), [3])
    assert "label must be left out for wrapped, which has no classes" in sentence(error)


@pytest.mark.parametrize(
    ("condition", "named"),
    [
        (
            class_condition(torch.arange(3)),
            "condition.inputs['label'] must have a row for each of the 4",
        ),
        (
            class_condition(torch.arange(1)),
            "condition.inputs['label'] must have a row for each of the 4",
        ),
        (Condition({"label": torch.tensor(2)}), "got ()"),
        (
            Condition({"label": torch.arange(4)}, torch.ones(1, 11)),
            "condition.features must have a row for each",
        ),
    ],
)
def test_a_sampler_refuses_a_condition_of_another_batch(condition, named):
    # One row is worse than three: it would be shared by all without a word.
    noise = noise_from_seeds(range(4), (1, 4, 4))
    for run in (tiny_teacher(), tiny_teacher().realized_plan):
        with pytest.raises(ValueError) as error:
            run(TinyClasses(), noise, condition)
        assert named in sentence(error)

"""Classifier-free guidance: the published mixture of two answers, from one call, for every form and
method."""

import math
import time

import pytest
import torch

from indis import (
    INDIS,
    UNCONDITIONAL,
    Condition,
    Counted,
    Form,
    Guided,
    Wrapped,
    convert,
    endpoint_batches,
    gather,
    prior,
)
from indis.denoise import ClassConditional, FeatureDenoiser, device_of
from indis.losses import mse
from indis.models import fashion
from indis.noise import EDM
from indis.recipe import Recipe
from problems import seeded
from small_cases import TinyClasses, sentence, tiny_teacher

TINY = TinyClasses()
ASKED = TINY.condition(range(4))
X, T = seeded(4, *TINY.shape, seed=1), torch.tensor([0.1, 1.0, 5.0, 40.0], dtype=torch.float64)


def without(condition):
    return fashion.class_condition(torch.full((len(condition.features),), 10))


def labelled(labels):
    return fashion.class_condition(torch.tensor(labels))


def guided(scale, inner=TINY):
    return Guided(inner, scale, without)


@pytest.mark.parametrize("scale", [0.0, 1.0, 2.5, -0.5])
def test_it_is_the_published_mixture(scale):
    given, none = TINY(X, T, ASKED), TINY(X, T, without(ASKED))
    assert float((given - none).abs().max()) > 0.1
    torch.testing.assert_close(guided(scale)(X, T, ASKED), (1 - scale) * none + scale * given)


def test_both_answers_come_from_one_call():
    inner = Counted(TINY)
    outer = Counted(guided(3.0, inner))
    outer(X, T, ASKED)
    assert (inner.calls, inner.samples, outer.calls, outer.samples) == (1, 8, 1, 4)


def test_each_sample_may_have_a_scale_of_its_own():
    scales = torch.tensor([0.0, 1.0, 2.5, -0.5])
    together = guided(scales)(X, T, ASKED)
    for i, scale in enumerate(scales.tolist()):
        row = slice(i, i + 1)
        alone = guided(scale)(X[row], T[row], ASKED[row])
        torch.testing.assert_close(together[row], alone, rtol=1e-12, atol=1e-12)
    scales.requires_grad_()
    (slope,) = torch.autograd.grad(guided(scales)(X, T, ASKED).sum(), scales)
    assert slope.shape == (4,) and bool((slope != 0).all())
    with pytest.raises(ValueError, match="one number a sample, got 4 for 3 samples") as error:
        guided(scales)(X[:3], T[:3], ASKED[slice(3)])
    sentence(error)
    with pytest.raises(ValueError, match=r"a number or a tensor \(batch,\), got shape \(4, 1\)"):
        guided(scales[:, None])


def test_the_condition_of_no_condition_may_be_one_row_for_everybody():
    none = labelled([10])
    model = Guided(TINY, 2.0, none)
    assert torch.equal(model(X, T, ASKED), guided(2.0)(X, T, ASKED))
    assert model.fingerprint == guided(2.0).fingerprint
    assert Guided(TINY, 2.0, labelled([3])).fingerprint != model.fingerprint
    with pytest.raises(ValueError, match="condition of one row or a function, got 2 rows of"):
        Guided(TINY, 2.0, labelled([10, 10]))(X, T, ASKED)


def test_large_embeddings_have_a_fingerprint_at_once():
    def of(embedding, scale=2.0):
        return Guided(TINY, scale, Condition({"text": embedding})).fingerprint

    big = torch.zeros(1, 512, 4096, dtype=torch.bfloat16)
    start = time.perf_counter()
    first = of(big)
    assert time.perf_counter() - start < 1 and len(first) < 100  # as numbers in text, seconds
    assert of(big.clone()) == first
    big[0, 511, 4095] = 1e-3
    assert len({first, of(big), of(big.float()), of(big[:, :, None])}) == 4
    per_sample = [of(big, torch.tensor(scales)) for scales in ([1.0, 2.0], [2.0, 1.0])]
    assert len({*per_sample, of(big)}) == 3


@pytest.mark.parametrize("form", Form)
def test_guided_predictions_of_all_forms_mean_the_same(form):
    def answer(x, t, condition):
        return convert(TINY(x, t, condition), Form.NOISE, form, x=x, schedule=EDM(), t=t)

    other = Wrapped(answer, EDM(), TINY.shape, form, condition=TINY.condition)
    here = {"x": X, "schedule": EDM(), "t": T}
    expected = convert(guided(4.0)(X, T, ASKED), Form.NOISE, form, **here)
    torch.testing.assert_close(guided(4.0, other)(X, T, ASKED), expected, rtol=1e-9, atol=1e-9)


def test_teachers_fits_and_samplers_work_on_it():
    model = guided(2.0)
    data = gather(list(endpoint_batches(model, tiny_teacher(), range(24))))
    plain = gather(list(endpoint_batches(TINY, tiny_teacher(), range(24))))
    assert float((data.target - plain.target).abs().max()) > 0.1
    method = INDIS(
        steps=2, width=8, depth=1, recipe=Recipe(iterations=20, batch=8, lr=0.3, holdout=8)
    )
    process = method.tuning(model, data, mse)
    before = process.validate()
    list(process.run())
    assert process.best < before


def test_it_says_whose_and_how_strongly_and_where():
    model = guided(2.0)
    assert model.name == "tiny, guided" and model.fingerprint.startswith("tiny-guided-2.0-")
    others = [
        guided(2.0000001),
        Guided(TINY, 2.0, lambda c: labelled([3] * len(c.features))),
        Counted(TINY),
    ]
    assert len({model.fingerprint, *(other.fingerprint for other in others)}) == 4
    assert guided(2.0).fingerprint == model.fingerprint
    assert (model.schedule, model.shape, model.native) == (TINY.schedule, TINY.shape, TINY.native)
    assert device_of(model) == torch.device("cpu") and not isinstance(model, FeatureDenoiser)


def test_it_can_be_asked_for_the_classes_that_the_model_has():
    inner = Wrapped(
        TINY, EDM(), TINY.shape, "noise", condition=TINY.condition, class_condition=labelled
    )
    for model in (Guided(inner, 2.0, without), Counted(inner)):
        assert isinstance(model, ClassConditional) and torch.equal(
            model.class_condition([3, 1]).features, labelled([3, 1]).features
        )
    assert not isinstance(guided(2.0), ClassConditional)


def test_features_are_those_of_the_half_with_condition():
    def answer(x, t, condition):
        return TINY(x, t, condition), condition.inputs["label"].double()[:, None]

    inner = Wrapped(answer, EDM(), TINY.shape, "noise", condition=TINY.condition, features=True)
    model = guided(2.0, inner)
    assert isinstance(model, FeatureDenoiser)
    guided_answer, features = model.with_features(X, T, ASKED)
    assert features.flatten().tolist() == [0, 1, 2, 3]
    assert torch.equal(guided_answer, model(X, T, ASKED))


@pytest.mark.parametrize(
    ("none", "condition"),
    [
        (lambda c: UNCONDITIONAL, ASKED),
        (lambda c: fashion.class_condition(torch.tensor([10])), ASKED),
        (lambda c: UNCONDITIONAL, UNCONDITIONAL),
        (lambda c: Condition({"text": c.inputs["label"]}), ASKED),
    ],
)
def test_other_inputs_than_the_condition_s_are_refused(none, condition):
    with pytest.raises(ValueError, match="without must give inputs like the condition's") as error:
        Guided(TINY, 2.0, none)(X, T, condition)
    sentence(error)


@pytest.mark.parametrize("scale", [math.nan, math.inf])
def test_a_scale_that_is_no_number_is_refused(scale):
    with pytest.raises(ValueError, match="scale must be finite"):
        guided(scale)


def test_the_model_that_ships_is_guided_away_from_no_class():
    pytest.importorskip("diffusers")
    from indis import models

    model = models.load("fashion")
    strong = Guided(model, 3.0, lambda c: model.class_condition([10] * len(c.features)))
    x, t = (
        prior(model.schedule, seeded(3, *model.shape, seed=2, dtype=torch.float32)),
        torch.full((3,), 80.0),
    )
    plain, none = (model(x, t, model.class_condition(labels)) for labels in ([0, 1, 2], [10] * 3))
    torch.testing.assert_close(
        strong(x, t, model.class_condition([0, 1, 2])),
        none + 3 * (plain - none),
        rtol=1e-3,
        atol=1e-4,
    )

"""Every method on a class-conditional model of pictures: the toy has vectors, no classes and a
bottleneck."""

from dataclasses import replace
from functools import cache

import pytest
import torch

from indis import Recipe, artifact, endpoint_batches, gather, losses, noise_from_seeds
from indis.denoise import Counted
from indis.methods import METHODS
from indis.policies import Fixed
from methods.cases import CASES
from small_cases import TinyClasses, sentence, tiny_teacher

SHORT = Recipe(iterations=2, batch=8, lr=0.05, holdout=8, validate_every=1)
OWN = {
    "ld3": {"pairs": 16},
    "gits": {"samples": 16},
    "ays": {"samples": 8, "fine": 40},
    "amed": {"features": "answer"},
    "amed-plugin": {"features": "answer"},
}
EVERY = pytest.mark.parametrize("name", list(METHODS))
UNSEEN = range(500, 523)


@cache
def pairs():
    return gather(list(endpoint_batches(TinyClasses(), tiny_teacher(), range(24))))


def case(name):
    return replace(CASES[name], grid="polynomial:7", loss="mse", recipe=SHORT, **OWN.get(name, {}))


@cache
def tuned(name):
    process = case(name).tuning(TinyClasses(), pairs(), losses.named("mse"))
    return process.sampler, list(process.run())


def draw(sampler, denoiser=None, labels=UNSEEN):
    denoiser = denoiser or TinyClasses()
    with torch.no_grad():
        return sampler(
            denoiser, noise_from_seeds(UNSEEN, denoiser.shape), denoiser.condition(list(labels))
        )


@EVERY
def test_it_tunes_and_draws_finite_pictures_of_the_class_that_is_asked_for(name):
    sampler, states = tuned(name)
    assert states[-1].step == states[-1].iterations
    assert all(torch.isfinite(torch.tensor([state.loss, state.heldout])).all() for state in states)
    drawn, others = draw(sampler), draw(sampler, labels=[seed + 1 for seed in UNSEEN])
    assert drawn.shape == (len(UNSEEN), 1, 4, 4) and bool(drawn.isfinite().all())
    assert bool(((drawn - others).abs().flatten(1).max(1).values > 1e-3).all())


@EVERY
def test_it_asks_as_often_as_it_says(name):
    sampler, _ = tuned(name)
    model, counter = TinyClasses(), Counted(TinyClasses())
    draw(sampler, model)
    draw(sampler, counter)
    assert counter.calls == sampler.nfe
    assert model.asked == counter.samples == sampler.nfe * len(UNSEEN)


@EVERY
def test_it_comes_back_from_disk_with_the_same_bits(name, tmp_path):
    sampler, _ = tuned(name)
    artifact.save(sampler, tmp_path)
    assert torch.equal(draw(artifact.load(tmp_path)), draw(sampler))


def test_phi_reads_the_class_where_there_is_one():
    for name in ("indis", "look", "local", "every-n"):
        assert tuned(name)[0].policy.condition_dim == 10


def test_ays_optimises_a_grid_of_its_own_here():
    found, start = tuned("ays")[0].policy, case("ays").untrained(TinyClasses()).policy
    assert isinstance(found, Fixed) and found.steps == 3
    assert float((found.tau / start.tau - 1).abs().max()) > 0.01
    assert torch.equal(found.tau[:, [0, -1]], start.tau[:, [0, -1]])


@pytest.mark.parametrize("name", ["amed", "amed-plugin"])
def test_amed_without_a_bottleneck_says_what_it_takes(name):
    with pytest.raises(ValueError) as error:
        replace(case(name), features="bottleneck").untrained(TinyClasses())
    assert (
        "AMED needs a denoiser with with_features(), which 'tiny' lacks; features='answer'"
        in sentence(error)
    )

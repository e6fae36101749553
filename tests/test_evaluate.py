"""Evaluation: calls are counted, means are over pairs, and a generator of samples is a good
neighbour."""

import pytest
import torch

from indis import Endpoints, heuristic, models, noise_from_seeds
from indis.bench.train_features import FeatureConfig, FeatureTrainer
from indis.denoise import UNCONDITIONAL
from indis.evaluate import (
    counted_nfe,
    frechet_of_images,
    frechet_of_seeds,
    sample_batches,
    score_pairs,
)
from indis.losses import mse, squared_distance
from indis.metrics.frechet import Moments, frechet_distance
from indis.models import fashion_features
from indis.models.fashion_features import frechet_judge
from indis.pixels import to_bytes, to_pixels
from small_cases import Still, TinyClasses, tiny_teacher, toy, toy_pairs, toy_teacher


def euler(denoiser, steps=3):
    return heuristic(denoiser, solver="euler", grid="uniform", steps=steps)


@pytest.mark.parametrize(
    ("solver", "steps", "afs", "expected"),
    [
        ("euler", 4, False, 4),
        ("euler", 4, True, 3),
        ("euler", 2, True, 1),
        ("ipndm:3", 5, False, 5),
        ("ipndm:3", 5, True, 4),
        ("heun", 3, False, 6),
        ("heun", 3, True, 5),
        ("dpmpp:2", 4, True, 3),
        ("unipc:3", 4, False, 4),
        ("unipc:3", 4, True, 3),
        ("deis:3", 4, False, 4),
    ],
)
def test_network_evaluations_are_counted_and_agree_with_what_the_sampler_says(
    solver, steps, afs, expected
):
    sampler = heuristic(toy(), solver=solver, grid="uniform", steps=steps, analytic_first=afs)
    assert counted_nfe(toy(), sampler) == expected == sampler.nfe


def test_scores_are_means_over_pairs_of_decoded_samples():
    seeds = torch.arange(5)
    noise = noise_from_seeds(seeds.tolist(), (3,))
    offset = torch.tensor([[1.0, 0, 0], [0, 2, 0], [0, 0, 0], [1, 1, 1], [0, 0, 3]])
    data = Endpoints(seeds, noise, noise - offset, UNCONDITIONAL)
    # The still model ends at its noise and doubles it when it decodes: four times the squares 1, 4,
    # 0, 3, 9.
    for batch in (2, 3, 500):
        scores = score_pairs(Still(), euler(Still()), data, squared_distance, batch=batch)
        assert scores.heldout_loss == pytest.approx(4 * 17 / 5, rel=1e-5)
        assert scores.teacher_mse == pytest.approx(4 * 17 / 5 / 3, rel=1e-5)
        assert scores.row() == {
            "heldout_loss": scores.heldout_loss,
            "teacher_mse": scores.teacher_mse,
            "pairs": 5,
        }


def test_the_teacher_itself_has_no_distance_to_its_endpoints():
    data = toy_pairs(20)
    assert score_pairs(toy(), toy_teacher(), data, mse).teacher_mse < 1e-10
    assert score_pairs(toy(), euler(toy()), data, mse).teacher_mse > 1e-3


def test_scores_of_conditional_pairs_use_the_stored_condition():
    seeds = list(range(6))
    denoiser, teacher = TinyClasses(), tiny_teacher()
    noise, condition = noise_from_seeds(seeds, denoiser.shape), denoiser.condition(seeds)
    target = teacher(denoiser, noise, condition)
    own = Endpoints(torch.tensor(seeds), noise, target, condition)
    wrong = Endpoints(torch.tensor(seeds), noise, target, denoiser.condition([9] * 6))
    assert score_pairs(denoiser, teacher, own, mse).teacher_mse < 1e-10
    assert score_pairs(denoiser, teacher, wrong, mse).teacher_mse > 1


def test_samples_are_decoded_and_are_their_seeds_whatever_the_batch():
    sampler = euler(Still())
    parts = list(sample_batches(Still(), sampler, range(10, 17), batch=3))
    assert [len(part) for part in parts] == [3, 3, 1]
    assert torch.equal(torch.cat(parts), 2 * noise_from_seeds(range(10, 17), (3,)))
    tiny = TinyClasses()
    conditional = torch.cat(list(sample_batches(tiny, tiny_teacher(), [3, 14, 7], batch=2)))
    expected = tiny_teacher()(
        tiny, noise_from_seeds([3, 14, 7], (1, 4, 4)), tiny.condition([3, 4, 7])
    )
    torch.testing.assert_close(conditional, expected)


def test_drawing_samples_leaves_the_callers_gradients_on():
    weight = torch.ones(1, requires_grad=True)
    for part in sample_batches(Still(), euler(Still()), range(4), batch=2):
        assert not torch.is_inference_mode_enabled()
        assert (weight * part.clone()).requires_grad


class Pictures:
    """A model of pictures whose samples are its noise."""

    fingerprint = "pictures"
    name, schedule, shape, native = "pictures", Still.schedule, (1, 28, 28), Still.native
    __call__, decode, condition = Still.__call__, Still.decode, Still.condition


def test_the_frechet_distance_of_seeds_is_that_of_their_pictures():
    told = []
    value = frechet_of_seeds(
        Pictures(), euler(Pictures()), range(260), *frechet_judge(), on_batch=told.append
    )
    pictures = 2 * noise_from_seeds(range(260), (1, 28, 28))
    assert told == [250, 260]
    assert value == pytest.approx(
        frechet_of_images(iter(pictures.split(100)), *frechet_judge()), rel=1e-4
    )
    assert value > 10


def test_another_feature_network_judges_with_its_own_moments(tmp_path):
    """As a classifier of another seed, written by its trainer, would."""
    trainer = FeatureTrainer(FeatureConfig(seed=5))
    images = torch.randint(
        0, 256, (300, 1, 28, 28), dtype=torch.uint8, generator=torch.Generator().manual_seed(1)
    )
    trainer.write(tmp_path, images)
    pictures = 2 * noise_from_seeds(range(20), (1, 28, 28))
    own, theirs = (
        frechet_of_images([pictures], *frechet_judge(folder)) for folder in (None, tmp_path)
    )
    assert own == frechet_of_images([pictures], *frechet_judge()) != theirs
    assert frechet_of_images([to_pixels(images)], *frechet_judge(tmp_path)) < 0.01 * theirs
    for name in fashion_features.LOSSES:
        usual, other = models.loss(name), models.loss(name, tmp_path)
        assert not torch.equal(usual(*pictures.split(10)), other(*pictures.split(10)))
    with pytest.raises(
        ValueError,
        match="loss must have a feature network, as fashion has, to choose one, got 'mse'",
    ):
        models.loss("mse", tmp_path)


def test_the_frechet_distance_of_points_is_refused_in_one_sentence():
    with pytest.raises(ValueError, match="grey images"):
        frechet_of_seeds(toy(), euler(toy()), range(4), *frechet_judge())


def test_float_samples_get_the_distance_of_the_pictures_that_are_stored_of_them():
    model = models.load("fashion")
    extract, reference = frechet_judge()
    with torch.no_grad():
        samples = torch.cat(list(sample_batches(model, euler(model, 2), range(40))))
    assert float((samples.abs() > 1).float().mean()) > 0.05  # or the test could not fail
    stored = to_pixels(to_bytes(samples))
    distance = frechet_of_images([samples], extract, reference)
    assert distance == pytest.approx(frechet_of_images([stored], extract, reference), rel=0.01)
    plain = Moments(len(reference.mean))
    plain.update(extract(samples))
    assert abs(frechet_distance(plain, reference) / distance - 1) > 0.05

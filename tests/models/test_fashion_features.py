from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch

from indis.bench import train_features as features_training
from indis.bench.train_features import FeatureConfig, FeatureTrainer
from indis.metrics.frechet import frechet_distance
from indis.models import fashion_features as features
from indis.models.fashion_data import DEBIAN_FOLDER, read
from indis.models.fashion_features import POOLED, FashionFeatures, dists, perceptual_distance
from indis.pixels import to_pixels
from indis.storage import load_tensors

needs_data = pytest.mark.skipif(not DEBIAN_FOLDER.is_dir(), reason=f"{DEBIAN_FOLDER} is missing")


@pytest.fixture(scope="module")
def network() -> FashionFeatures:
    return features.load()


def blobs(count: int = 8, seed: int = 0) -> torch.Tensor:
    """Smooth random images in [-1, 1]."""
    coarse = torch.randn(count, 1, 7, 7, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.interpolate(2 * coarse, size=(28, 28), mode="bilinear").clamp(-1, 1)


def noise_like(x: torch.Tensor) -> torch.Tensor:
    return torch.randn(x.shape, generator=torch.Generator().manual_seed(1))


def test_shapes_and_size(network):
    x = blobs(3)
    assert network(x).shape == (3, 10)
    assert network.pooled(x).shape == (3, POOLED)
    assert [tuple(m.shape[1:]) for m in network.layers(x)] == [
        (24, 28, 28),
        (48, 14, 14),
        (48, 14, 14),
        (96, 7, 7),
        (96, 7, 7),
    ]
    assert sum(p.numel() for p in network.parameters()) < 250_000
    assert features.WEIGHTS.stat().st_size < 1_000_000


def test_the_loaded_network_is_frozen_and_treats_each_image_alone(network):
    x = blobs(4)
    assert not network.training and not any(p.requires_grad for p in network.parameters())
    torch.testing.assert_close(network.pooled(x)[1:2], network.pooled(x[1:2]), rtol=1e-4, atol=1e-5)


def test_perceptual_distance_is_zero_only_between_equal_images(network):
    x = blobs()
    assert perceptual_distance(network, x, x.clone()).eq(0).all()
    touched = x.clone()
    touched[:, :, 14, 14] += 0.1
    distance = perceptual_distance(network, x, touched)
    assert distance.shape == (8,) and distance.gt(0).all()
    torch.testing.assert_close(distance, perceptual_distance(network, touched, x))


def test_perceptual_distance_grows_with_noise(network):
    x = blobs()
    levels = [
        perceptual_distance(network, x, x + s * noise_like(x))
        for s in (0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
    ]
    assert all((low < high).all() for low, high in pairwise(levels))
    assert levels[-1].max() <= 4


def test_gradient_at_equal_images_is_zero(network):
    x = blobs().requires_grad_()
    perceptual_distance(network, x, x.detach().clone()).sum().backward()
    assert torch.equal(x.grad, torch.zeros_like(x))


def test_gradient_survives_features_that_are_all_zero():
    dead = FashionFeatures().eval()
    for parameter in dead.parameters():
        torch.nn.init.zeros_(parameter)
    x = blobs().requires_grad_()
    perceptual_distance(dead, x, torch.zeros_like(x)).sum().backward()
    assert torch.isfinite(x.grad).all()


def test_descending_the_gradient_restores_an_image(network):
    target = blobs()
    x = (target + 0.3 * noise_like(target)).requires_grad_()
    start = (x.detach() - target).square().mean()
    optimizer = torch.optim.Adam([x], lr=0.02)
    for _ in range(60):
        optimizer.zero_grad()
        perceptual_distance(network, x, target).sum().backward()
        optimizer.step()
    assert (x.detach() - target).square().mean() < 0.5 * start


def test_perceptual_distance_refuses_to_broadcast(network):
    with pytest.raises(ValueError, match="equal shapes"):
        perceptual_distance(network, blobs(8), blobs(1))


def test_reference_moments_fit_the_network():
    moments = features.load_moments()
    _, meta = load_tensors(features.MOMENTS)
    assert moments.count == 60_000 == meta["images"] and meta["flips"] is False
    assert moments.mean.shape == (POOLED,) and moments.covariance.shape == (POOLED, POOLED)
    assert torch.linalg.eigvalsh(moments.covariance).min() > 0
    assert meta["features"] == load_tensors(features.WEIGHTS)[1]


@needs_data
def test_shipped_weights_classify(network):
    images, labels = read("t10k")
    assert features_training.accuracy(network, images[:2000], labels[:2000]) >= 0.91


@needs_data
def test_frechet_distance_orders_sets_of_images(network):
    clean = to_pixels(read("t10k")[0][:1000])
    noisy = [clean + s * noise_like(clean) for s in (0, 0.1, 0.3)]
    reference = features.load_moments()
    values = []
    for x in noisy:
        moments = features.Moments(POOLED)
        moments.update(network.pooled(x))
        values.append(frechet_distance(moments, reference))
    assert values[0] < 0.5 * values[1] and values[1] < values[2]


@needs_data
def test_training_moments_are_those_of_the_shipped_weights(network):
    images = read("train")[0][:1000]
    part = features_training.pooled_moments(network, images)
    reference = features.load_moments()
    spread = reference.covariance.diagonal().sqrt()
    assert ((part.mean - reference.mean).abs() < 5 * spread / 1000**0.5).all()


def synthetic(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Class k is a bright row at height 2 k + 4 on a black image."""
    labels = torch.arange(count) % 10
    images = torch.zeros(count, 1, 28, 28, dtype=torch.uint8)
    images[torch.arange(count), 0, 2 * labels + 4] = 255
    return images, labels


def train(config: FeatureConfig) -> tuple[FeatureTrainer, list[features_training.FeatureProgress]]:
    trainer = FeatureTrainer(config)
    return trainer, list(trainer.run(synthetic(200), synthetic(50)))


def test_training_reports_learns_and_repeats(tmp_path):
    config = FeatureConfig(epochs=3, batch=50, warmup=3, shift=0, bf16=False)
    trainer, progress = train(config)
    assert [p.step for p in progress] == list(range(1, 13))
    assert [p.step for p in progress if p.accuracy is not None] == [4, 8, 12]
    assert progress[-1].loss < 0.8 * progress[0].loss
    assert [p.loss for p in train(config)[1]] == [p.loss for p in progress]
    assert train(FeatureConfig(epochs=1, batch=50, warmup=3, seed=1))[1][0].loss != progress[0].loss

    trainer.write(tmp_path, synthetic(200)[0])
    back = features.load(tmp_path / features.WEIGHTS.name)
    moments = features.load_moments(tmp_path / features.MOMENTS.name)
    torch.testing.assert_close(
        back.head.weight, trainer.network.head.weight.detach(), rtol=1e-3, atol=1e-6
    )
    assert moments.count == 200
    mean = features_training.pooled_moments(back, synthetic(200)[0]).mean
    torch.testing.assert_close(moments.mean, mean)


def test_training_needs_a_batch_and_loading_the_right_file(tmp_path):
    with pytest.raises(ValueError, match="at least one batch of 128"):
        next(FeatureTrainer().run(synthetic(20), synthetic(20)))
    with pytest.raises(ValueError, match="FashionFeatures"):
        features.load(features.MOMENTS)
    with pytest.raises(FileNotFoundError):
        features.load(tmp_path / "missing.safetensors")


def test_dists_is_zero_between_equal_images_and_symmetric(network):
    x, y = blobs(), blobs(seed=1)
    torch.testing.assert_close(dists(network, x, x.clone()), torch.zeros(8), rtol=0, atol=1e-5)
    torch.testing.assert_close(dists(network, x, y), dists(network, y, x))
    assert dists(network, x, y).gt(0.05).all() and dists(network, x, y).le(2).all()


def test_dists_by_hand():
    a = torch.tensor([[[[1.0, 3.0], [1.0, 3.0]]]])  # mean 2, variance 1
    b = torch.tensor([[[[2.0, 6.0], [2.0, 6.0]]]])  # mean 4, variance 4, covariance 2
    texture, structure = 2 * 2 * 4 / (4 + 16), 2 * 2 / (1 + 4)
    plain = SimpleNamespace(
        layers=lambda x: [x[:, :, :, :1]]
    )  # the layer's channels are constant: no structure to lose
    layer = ((2 * 1 * 2) / (1 + 4) + 1) / 2
    expected = 1 - ((texture + structure) / 2 + layer) / 2
    assert dists(plain, a, b).item() == pytest.approx(expected, rel=1e-5)


def test_the_squared_distance_prefers_blur_to_misplaced_grain_and_dists_does_not(network):
    x = blobs(32)
    grain = 0.3 * torch.randn(x.shape, generator=torch.Generator().manual_seed(5))
    sharp, blurred, truth = x + grain, x, x + grain.flip(-1)
    assert (
        perceptual_distance(network, blurred, truth).mean()
        < perceptual_distance(network, sharp, truth).mean()
    )
    assert dists(network, blurred, truth).mean() > dists(network, sharp, truth).mean()


def test_dists_has_finite_gradients_and_refuses_to_broadcast(network):
    x = torch.zeros(2, 1, 28, 28, requires_grad=True)
    dists(network, x, blobs(2)).sum().backward()
    assert x.grad is not None and torch.isfinite(x.grad).all() and x.grad.abs().sum() > 0
    with pytest.raises(ValueError, match="equal shapes"):
        dists(network, blobs(8), blobs(1))

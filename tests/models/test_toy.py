"""The toy denoiser against its recipe's checksums, a naive version, differences and Tweedie's
formula."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from indis.denoise import UNCONDITIONAL, Denoiser, FeatureDenoiser, Form
from indis.models import toy
from indis.models.mixture import CHUNK, Mixture, posterior_mean
from indis.models.toy import tree


@pytest.fixture(scope="module")
def mixture() -> Mixture:
    return tree()


@pytest.fixture(scope="module")
def loose() -> Mixture:
    """Nine components without any structure."""
    generator = torch.Generator().manual_seed(3)
    root = torch.randn(9, 2, 2, generator=generator, dtype=torch.float64) / 5
    covariances = root @ root.mT + 1e-3 * torch.eye(2, dtype=torch.float64)
    weights = torch.rand(9, generator=generator, dtype=torch.float64)
    means = torch.randn(9, 2, generator=generator, dtype=torch.float64)
    return Mixture(weights / weights.sum(), means, covariances)


def moments(mixture: Mixture) -> tuple[Tensor, Tensor]:
    mean = mixture.weights @ mixture.means
    second = mixture.weights @ (mixture.means**2 + mixture.covariances.diagonal(dim1=1, dim2=2))
    return mean, second


def points(mixture: Mixture, alpha: Tensor, sigma: Tensor, seed: int = 0) -> Tensor:
    """Noisy samples, one per level."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(len(alpha), 2, generator=generator, dtype=torch.float64)
    return alpha[:, None] * mixture.sample(len(alpha), generator) + sigma[:, None] * noise


def levels(count: int) -> tuple[Tensor, Tensor]:
    """(alpha, sigma) of flow times over the whole schedule and a little beyond its end."""
    t = torch.linspace(0.002, 1.05, count, dtype=torch.float64)
    return 1 - t, t


def naive(x: Tensor, alpha: Tensor, sigma: Tensor, mixture: Mixture) -> Tensor:
    """The formula as written, for autograd to differentiate."""
    a, eye = alpha[:, None, None, None], torch.eye(2, dtype=x.dtype)
    noisy = a**2 * mixture.covariances + sigma[:, None, None, None] ** 2 * eye
    offset = (x[:, None] - alpha[:, None, None] * mixture.means)[..., None]
    solved = torch.linalg.inv(noisy) @ offset
    logit = mixture.weights.log() - (offset.mT @ solved)[..., 0, 0] / 2 - torch.logdet(noisy) / 2
    means = mixture.means + (a * mixture.covariances @ solved)[..., 0]
    return (logit.softmax(1)[..., None] * means).sum(1)


def test_tree_has_the_checksums_of_the_recipe() -> None:
    a, b = tree("A"), tree("B")
    mean, second = moments(a)
    assert len(a.weights) == len(b.weights) == 1016
    assert a.weights.sum().item() == pytest.approx(1)
    assert mean.tolist() == pytest.approx([0.3719, 0.3646], abs=6e-5)
    assert (second - mean**2).sqrt().tolist() == pytest.approx([0.3331, 0.3415], abs=6e-5)
    assert second.sqrt().tolist() == pytest.approx([0.499, 0.499], abs=1e-3)
    assert a.means[0].tolist() == pytest.approx([0.02134411, 0.06333431], abs=6e-9)
    shape = [3.4676e-4, 1.0358e-4, 1.0358e-4, 3.8515e-4]
    assert a.covariances[0].flatten().tolist() == pytest.approx(shape, rel=2e-5)
    mean, second = moments(b)
    assert mean.tolist() == pytest.approx([-0.339, -0.331], abs=6e-4)
    assert (second - mean**2).sqrt().tolist() == pytest.approx([0.368, 0.375], abs=6e-4)
    deviations = torch.linalg.eigvalsh(tree("AB").covariances).sqrt()
    assert (deviations.min().item(), deviations.max().item()) == pytest.approx(
        (0.0031, 0.0231), abs=6e-5
    )


def test_both_classes_together_have_deviation_one_half() -> None:
    both = tree("AB")
    mean, second = moments(both)
    assert len(both.weights) == 2032
    assert (second - mean**2).sqrt().tolist() == pytest.approx([0.49985, 0.49990], abs=6e-6)
    assert torch.equal(both.means[:1016], tree("A").means)


def test_tree_depends_on_the_seed_and_refuses_unknown_classes() -> None:
    assert not torch.equal(tree(seed=3).means, tree().means)
    with pytest.raises(ValueError, match="classes must be"):
        tree("C")


def test_samples_have_the_moments_of_the_mixture(mixture: Mixture) -> None:
    samples = mixture.sample(100_000, torch.Generator().manual_seed(0))
    mean, second = moments(mixture)
    assert samples.shape == (100_000, 2)
    assert torch.allclose(samples.mean(0), mean, atol=5e-3)
    assert torch.allclose(samples.square().mean(0), second, atol=5e-3)


def test_log_density_of_one_gaussian_and_its_integral(loose: Mixture) -> None:
    unit = torch.eye(2, dtype=torch.float64)
    single = Mixture(
        torch.ones(1, dtype=torch.float64), torch.zeros(1, 2, dtype=torch.float64), unit[None]
    )
    at = torch.tensor([[1.0, 2.0]], dtype=torch.float64)
    assert single.log_density(at).item() == pytest.approx(-2.5 - math.log(2 * math.pi))
    axis = torch.linspace(-6, 6, 601, dtype=torch.float64)
    grid = torch.cartesian_prod(axis, axis)
    assert loose.log_density(grid).exp().sum().item() * 0.02**2 == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("kind", ["mixture", "loose"])
def test_value_and_gradients_match_the_naive_formula(
    kind: str, request: pytest.FixtureRequest
) -> None:
    mixture = request.getfixturevalue(kind)
    # More than one chunk.
    alpha, sigma = levels(CHUNK + 37)
    inputs = [v.clone().requires_grad_() for v in (points(mixture, alpha, sigma), alpha, sigma)]
    ours, theirs = posterior_mean(*inputs, mixture), naive(*inputs, mixture)
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)
    pull = torch.randn(ours.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    gradients = [torch.autograd.grad(v, inputs, pull) for v in (ours, theirs)]
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def test_branches_are_found_only_where_they_are(mixture: Mixture, loose: Mixture) -> None:
    assert mixture.branch_length == tree("AB").branch_length == 8
    assert loose.branch_length == 1
    bent = Mixture(mixture.weights, mixture.means + 1e-6 * mixture.means**2, mixture.covariances)
    assert bent.branch_length == 1


@pytest.mark.parametrize("t", [0.05, 0.3, 0.7, 0.98, 1.0, 1.02])
def test_gradcheck(mixture: Mixture, t: float) -> None:
    sigma = torch.full((3,), t, dtype=torch.float64)
    inputs = [
        v.clone().requires_grad_() for v in (points(mixture, 1 - sigma, sigma), 1 - sigma, sigma)
    ]
    assert torch.autograd.gradcheck(lambda x, a, s: posterior_mean(x, a, s, mixture), inputs)


def test_float32_stays_close_to_float64(mixture: Mixture) -> None:
    alpha, sigma = levels(300)
    exact = [v.clone().requires_grad_() for v in (points(mixture, alpha, sigma), alpha, sigma)]
    single = [v.detach().float().requires_grad_() for v in exact]
    value, rounded = posterior_mean(*exact, mixture), posterior_mean(*single, mixture)
    assert rounded.dtype == torch.float32
    torch.testing.assert_close(rounded.double(), value, rtol=0, atol=2e-5)
    gradients = torch.autograd.grad(value.sum(), exact), torch.autograd.grad(rounded.sum(), single)
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(b.double(), a, rtol=1e-3, atol=1e-3)


def test_gradient_in_x_is_the_posterior_covariance(loose: Mixture) -> None:
    """dE[x_0]/dx = alpha / sigma^2 Cov(x_0 | x), by weighing samples of the data."""
    alpha, sigma = (
        torch.tensor([0.6], dtype=torch.float64),
        torch.tensor([0.5], dtype=torch.float64),
    )
    x = torch.tensor([[0.2, -0.1]], dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(
        lambda v: posterior_mean(v, alpha, sigma, loose), x
    )
    jacobian = jacobian[0, :, 0]
    data = loose.sample(400_000, torch.Generator().manual_seed(0))
    weights = (-(x - alpha * data).square().sum(1) / (2 * sigma**2)).softmax(0)
    centred = data - weights @ data
    covariance = centred.T * weights @ centred
    torch.testing.assert_close(jacobian, alpha / sigma**2 * covariance, rtol=0, atol=1e-2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_finite_far_from_the_data(mixture: Mixture, dtype: torch.dtype) -> None:
    x = torch.tensor([[50.0, 50.0], [-50.0, 0.0], [0.0, 50.0]], dtype=dtype, requires_grad=True)
    sigma = torch.full((3,), 0.002, dtype=dtype, requires_grad=True)
    mean = posterior_mean(x, 1 - sigma, sigma, mixture)
    gradients = torch.autograd.grad(mean.sum(), (x, sigma))
    assert all(v.isfinite().all() for v in (mean, *gradients))


def test_pure_noise_says_nothing_about_the_data(mixture: Mixture) -> None:
    x = torch.randn(5, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    mean = posterior_mean(x, torch.zeros(5), torch.ones(5), mixture)
    torch.testing.assert_close(mean, moments(mixture)[0].expand(5, 2))


@pytest.mark.parametrize("t", [0.01, 0.2, 0.6, 0.95])
def test_tweedie(mixture: Mixture, t: float) -> None:
    sigma = torch.full((20,), t, dtype=torch.float64)
    noisy = Mixture(
        mixture.weights,
        (1 - t) * mixture.means,
        (1 - t) ** 2 * mixture.covariances + t**2 * torch.eye(2, dtype=torch.float64),
    )
    x = points(mixture, 1 - sigma, sigma).requires_grad_()
    (score,) = torch.autograd.grad(noisy.log_density(x).sum(), x)
    expected = (x + t**2 * score) / (1 - t)
    torch.testing.assert_close(
        posterior_mean(x, 1 - sigma, sigma, mixture), expected, rtol=1e-9, atol=1e-9
    )


def test_denoiser_answers_the_velocity_in_the_dtype_of_x() -> None:
    model = toy.load()
    assert isinstance(model, Denoiser)
    assert (model.name, model.shape, model.native) == ("toy", (2,), Form.VELOCITY)
    t = torch.tensor([0.002, 0.5, 1.0, 1.01], dtype=torch.float64)
    x = points(model.mixture, 1 - t, t)
    velocity = model(x.float(), t, model.condition([0, 1, 2, 3]))
    expected = (x - naive(x, 1 - t, t, model.mixture)) / t[:, None]
    assert velocity.dtype == torch.float32
    torch.testing.assert_close(velocity.double(), expected, rtol=0, atol=2e-3)


def test_gradient_reaches_the_times() -> None:
    model = toy.load()
    t = torch.tensor([0.3, 0.9], dtype=torch.float64, requires_grad=True)
    x = torch.tensor([[0.2, 0.3], [0.5, -0.1]], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda a, b: model(a, b, UNCONDITIONAL), (x, t))


def test_its_features_are_what_a_network_could_know() -> None:
    model = toy.load()
    assert isinstance(model, FeatureDenoiser)
    x, t = torch.tensor([[0.3, -0.2], [0.1, 0.4]], requires_grad=True), torch.tensor([0.5, 0.2])
    velocity, features = model.with_features(x, t, UNCONDITIONAL)
    assert torch.equal(velocity, model(x, t, UNCONDITIONAL)) and velocity.requires_grad
    unit, mean = features.split(2, dim=1)
    assert not features.requires_grad
    torch.testing.assert_close(unit, (x / ((1 - t) ** 2 + t**2).sqrt()[:, None]).detach())
    torch.testing.assert_close(mean, (x - t[:, None] * velocity).detach())


def test_names_tell_models_apart() -> None:
    assert toy.load("AB").name == "toy-AB"
    assert toy.load("B", seed=3).name == "toy-B-seed3"
    assert model_schedule_ends() == pytest.approx((0.002 / 1.002, 80 / 81))


def model_schedule_ends() -> tuple[float, float]:
    schedule = toy.load().schedule
    return schedule.t_min, schedule.t_max

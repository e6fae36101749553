"""The loss ``lpips`` against the ``lpips`` package and against the published formula, with the
published weights.

``make test-lpips`` runs this in an environment of its own; elsewhere it is skipped.
"""

from collections.abc import Iterator
from types import ModuleType

import pytest
import torch
from torch import Tensor
from torch.nn.functional import conv2d, interpolate, max_pool2d, relu

import real_lpips
from indis import losses
from indis.pixels import to_pixels

NETS = ["vgg", "alex"]
SIZES = [("vgg", 28), ("vgg", 64), ("alex", 64)]  # AlexNet's strides leave nothing of 28
# Channel means and deviations of ImageNet in [-1, 1] as LPIPS has them.
MEAN, DEVIATION = [-0.030, -0.088, -0.188], [0.458, 0.448, 0.450]
# Where a convolution comes after pooling, and after which ones LPIPS compares: counted in
# convolutions, from 0.
POOLED = {"vgg": {2, 4, 7, 10}, "alex": {1, 2}}
COMPARED = {"vgg": {1, 3, 6, 9, 12}, "alex": {0, 1, 2, 3, 4}}


@pytest.fixture(scope="module")
def package() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        yield real_lpips.package(patch)


@pytest.fixture(scope="module", params=NETS)
def net(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def ours(package: ModuleType, net: str) -> losses.LPIPS:
    return losses.LPIPS(net)


@pytest.fixture(scope="module")
def theirs(package: ModuleType, net: str) -> torch.nn.Module:
    return package.LPIPS(net=net, verbose=False)


def images(seed: int, count: int = 3, channels: int = 3, size: int = 64) -> Tensor:
    """Soft blobs that reach both ends of [-1, 1]."""
    coarse = 1.5 * torch.randn(count, channels, 7, 7, generator=torch.Generator().manual_seed(seed))
    return interpolate(coarse, size=(size, size), mode="bilinear").clamp(-1, 1)


def garment(seed: int, size: int = 32) -> Tensor:
    """A grey picture on black, as in Fashion-MNIST: most of it is one exact value."""
    picture = torch.full((1, 1, size, size), -1.0)
    picture[..., 8:24, 8:24] = images(seed, 1, 1, 16)
    return picture


def maps(net: str, x: Tensor) -> list[Tensor]:
    """The trunk by hand: what LPIPS compares, at five depths."""
    found, (window, first) = [], {"vgg": (2, (1, 1)), "alex": (3, (4, 2))}[net]
    for i, (weight, bias) in enumerate(real_lpips.convolutions(net)):
        x = max_pool2d(x, window, 2) if i in POOLED[net] else x
        stride, padding = first if i == 0 else (1, weight.shape[-1] // 2)
        x = relu(conv2d(x, weight.to(x), bias.to(x), stride, padding))
        found += [x] if i in COMPARED[net] else []
    return found


def published(net: str, a: Tensor, b: Tensor) -> Tensor:
    """Eq. 1 of Zhang et al. (2018) in float64: no line of the package, its heads or ours takes
    part."""
    mean, deviation = (
        torch.tensor(v, dtype=torch.float64)[:, None, None] for v in (MEAN, DEVIATION)
    )
    scaled = [(v - mean) / deviation for v in (a, b)]
    total = torch.zeros(len(a), dtype=torch.float64)
    for left, right, head in zip(
        *(maps(net, v) for v in scaled), real_lpips.heads(net), strict=True
    ):
        unit = [v / v.norm(dim=1, keepdim=True).clamp_min(1e-10) for v in (left, right)]
        total += ((unit[0] - unit[1]).square() * head[:, None, None]).sum(1).mean((1, 2))
    return total


@pytest.mark.parametrize(("net", "size"), SIZES, indirect=["net"])
def test_the_loss_is_what_the_package_says_at_the_size_that_the_images_have(ours, theirs, size):
    a, b = images(0, size=size), images(1, size=size)
    value = ours(a, b)
    assert value.shape == (3,)
    assert torch.equal(value, theirs(a, b)[:, 0, 0, 0])
    assert value.min() > 0.05 and value.unique().numel() == 3


@pytest.mark.parametrize(("net", "size"), SIZES, indirect=["net"])
def test_the_loss_is_the_published_formula_with_the_published_weights(ours, net, size):
    a, b = images(0, size=size), images(1, size=size)
    torch.testing.assert_close(ours(a, b).double(), published(net, a, b), rtol=0, atol=2e-6)


def test_each_value_is_that_of_its_pair_alone(ours, theirs):
    a, b = images(2), images(3)
    alone = torch.cat([theirs(a[i : i + 1], b[i : i + 1]).flatten() for i in range(3)])
    torch.testing.assert_close(ours(a, b), alone, rtol=0, atol=2e-6)


def test_equal_images_are_at_no_distance_and_noise_adds_some(ours):
    a, noise = images(4), torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(5))
    assert ours(a, a.clone()).tolist() == [0, 0, 0]
    assert (ours(a, a + 0.05 * noise) < ours(a, a + 0.2 * noise)).all()


def test_a_grey_image_is_what_the_package_says_of_three_equal_channels(ours, theirs):
    a, b = images(6, channels=1), images(7, channels=1)
    assert torch.equal(ours(a, b), theirs(a.repeat(1, 3, 1, 1), b.repeat(1, 3, 1, 1)).flatten())


def test_our_range_is_the_one_that_the_package_makes_of_bytes_and_of_unit_images(
    ours, theirs, package
):
    a, b = ((images(seed) * 127.5 + 127.5).round().byte() for seed in (8, 9))
    value = ours(to_pixels(a), to_pixels(b))
    unit = theirs(a / 255, b / 255, normalize=True).flatten()
    read = [
        torch.cat([package.im2tensor(v.permute(1, 2, 0).numpy()) for v in batch])
        for batch in (a, b)
    ]
    torch.testing.assert_close(value, unit, rtol=0, atol=2e-6)
    torch.testing.assert_close(value, theirs(*read).flatten(), rtol=0, atol=2e-6)


def test_the_gradient_is_the_packages_and_reaches_the_student_alone(ours, theirs):
    ours_of, theirs_of = (images(10).requires_grad_() for _ in range(2))
    ours(ours_of, images(11)).sum().backward()
    theirs(theirs_of, images(11)).sum().backward()
    assert torch.equal(ours_of.grad, theirs_of.grad)
    assert (ours_of.grad.flatten(1).norm(dim=1) > 1e-3).all()
    assert all(p.grad is None and not p.requires_grad for p in ours.parameters())


def test_the_gradient_of_one_sample_knows_nothing_of_the_others(ours):
    student = images(12).requires_grad_()
    ours(student, images(13))[1].backward()
    assert student.grad[1].abs().sum() > 0
    assert student.grad[[0, 2]].abs().sum() == 0


def test_the_gradient_of_a_picture_on_black_is_finite_even_where_all_is_black(ours):
    student = torch.cat(
        [garment(14), torch.full((1, 1, 32, 32), -1.0), garment(15)]
    ).requires_grad_()
    ours(student, garment(15).expand(3, -1, -1, -1)).sum().backward()
    assert student.grad.isfinite().all()
    assert (student.grad[:2].flatten(1).norm(dim=1) > 1e-3).all()

"""Losses by hand, and what a person reads who asks for one that is not there."""

import sys
from types import SimpleNamespace

import pytest
import torch

from indis import losses, models
from indis.losses import mse, squared_distance
from small_cases import sentence

STUDENT = torch.tensor([[[1.0, 2.0], [3.0, 4.0]], [[0.0, 0.0], [0.0, 0.0]]])
TEACHER = torch.tensor([[[1.0, 0.0], [3.0, 1.0]], [[0.0, 0.0], [0.0, 2.0]]])


def images(seed=0, count=3):
    coarse = torch.randn(count, 1, 7, 7, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.interpolate(coarse, size=(28, 28), mode="bilinear").clamp(-1, 1)


def test_mean_square_error_averages_over_everything_but_the_sample():
    assert mse(STUDENT, TEACHER).tolist() == [(4 + 9) / 4, 4 / 4]


def test_squared_distance_sums_what_the_mean_square_error_averages():
    assert squared_distance(STUDENT, TEACHER).tolist() == [13, 4]
    assert losses.named("squared")(STUDENT, TEACHER).tolist() == [13, 4]
    assert losses.named("mse")(STUDENT, TEACHER).tolist() == [3.25, 1]


def test_an_unknown_name_lists_the_known_ones():
    for named, known in ((losses.named, losses.LOSSES), (models.loss, models.loss_names())):
        with pytest.raises(ValueError) as error:
            named("l1")
        text = sentence(error)
        assert "'l1'" in text
        assert all(name in text for name in known)
    assert set(models.loss_names()) == {
        "mse",
        "squared",
        "lpips",
        "fashion",
        "fashion-dists",
        "log-brightness",
    }
    assert models.loss("mse") is losses.named("mse")


def test_without_the_lpips_package_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "lpips", None)
    with pytest.raises(ImportError) as error:
        losses.named("lpips")
    assert "pip install indis-diffusion[lpips]" in sentence(error)


class FakeLPIPS(torch.nn.Module):
    """Stands in for the package's network and keeps what it was asked."""

    def __init__(self, net, verbose):
        super().__init__()
        self.asked, self.weight = [], torch.nn.Parameter(torch.ones(1))

    def forward(self, a, b):
        self.asked.append((a, b))
        return self.weight * (a - b).square().mean((1, 2, 3), keepdim=True)


@pytest.fixture
def lpips(monkeypatch):
    monkeypatch.setitem(sys.modules, "lpips", SimpleNamespace(LPIPS=FakeLPIPS))
    return losses.named("lpips")


def test_lpips_gets_three_equal_channels_of_a_grey_image(lpips):
    a, b = images(0), images(1)
    torch.testing.assert_close(lpips(a, b), mse(a, b))
    lpips(a.repeat(1, 3, 1, 1), b.repeat(1, 3, 1, 1))
    grey, colour = lpips.network.asked
    assert torch.equal(grey[0], a.repeat(1, 3, 1, 1))
    assert torch.equal(colour[1], b.repeat(1, 3, 1, 1))
    assert not any(p.requires_grad for p in lpips.parameters())


@pytest.mark.parametrize("shape", [(4, 2), (3, 28, 28), (4, 2, 28, 28), (4, 3, 8, 28, 28)])
def test_lpips_of_what_is_no_image_is_refused_in_one_sentence(lpips, shape):
    for pair in [(torch.zeros(shape), images()), (images(), torch.zeros(shape))]:
        with pytest.raises(ValueError) as error:
            lpips(*pair)
        assert "images" in sentence(error) and str(shape) in sentence(error)
    assert lpips.network.asked == []


def test_the_fashion_loss_is_zero_only_between_equal_images():
    loss, a = models.loss("fashion"), images()
    touched = a.clone()
    touched[1, 0, 14, 14] += 0.2
    assert loss(a, a.clone()).tolist() == [0, 0, 0]
    distance = loss(a, touched)
    assert distance[0] == distance[2] == 0
    assert distance[1] > 1e-5


def test_the_gradient_of_the_fashion_loss_reaches_the_student_and_not_the_network():
    loss, student = models.loss("fashion"), images(1).requires_grad_()
    loss(student, images(2)).sum().backward()
    assert student.grad.isfinite().all() and student.grad.abs().sum() > 1e-3
    assert all(p.grad is None and not p.requires_grad for p in loss.parameters())


def test_the_fashion_loss_of_points_is_refused_in_one_sentence():
    with pytest.raises(ValueError) as error:
        models.loss("fashion")(torch.zeros(4, 2), torch.zeros(4, 2))
    assert "grey images" in sentence(error) and "(4, 2)" in sentence(error)

"""Constants that are made once serve whoever comes later, and random numbers drawn here leave the
caller's alone."""

import pytest
import torch

from indis.numerics import gauss_legendre, quadrature_points, seeded


@pytest.fixture
def forgotten():
    """As in a fresh process."""
    gauss_legendre.cache_clear()
    yield
    gauss_legendre.cache_clear()


def test_quadrature_first_used_in_inference_mode_still_carries_gradients(forgotten):
    start, stop = torch.zeros(2, dtype=torch.float64), torch.ones(2, dtype=torch.float64)
    with torch.inference_mode():
        quadrature_points(start, stop)
    stop.requires_grad_()
    at, weights = quadrature_points(start, stop)
    (at**2 * weights).sum().backward()
    torch.testing.assert_close(stop.grad, torch.ones(2, dtype=torch.float64))  # d/ds of s^3 / 3


def test_seeded_draws_repeat_and_leave_every_generator_of_the_caller_alone(monkeypatch):
    reseeded = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", reseeded.append)
    torch.manual_seed(3)
    reseeded.clear()
    expected = torch.random.get_rng_state()
    with seeded(7):
        first = torch.randn(3)
    assert torch.equal(torch.random.get_rng_state(), expected) and not reseeded
    torch.manual_seed(7)
    assert torch.equal(first, torch.randn(3))

"""Constants that are made once serve whoever comes later: one who samples first may fit afterwards."""

import pytest
import torch

from indis.numerics import gauss_legendre, quadrature_points


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

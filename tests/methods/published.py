"""The samplers of AMED, EPD and AdaSDE as their papers write them, in sigma = t with a data
prediction D(x, t)."""

import torch

from indis import EDM, UNCONDITIONAL, Form
from problems import Gaussian, seeded

SCHEDULE = EDM(0.05, 10.0)
ADAMS = {
    1: [1],
    2: [3 / 2, -1 / 2],
    3: [23 / 12, -16 / 12, 5 / 12],
    4: [55 / 24, -59 / 24, 37 / 24, -9 / 24],
}


def problem(native=Form.NOISE):
    return Gaussian(SCHEDULE, native)


def data(x, t):
    """D(x, t) for one time or one time a row."""
    return Gaussian(SCHEDULE, Form.DATA)(x, t.reshape(-1).expand(len(x)), UNCONDITIONAL)


def slope(x, t, *, asked=None):
    """(x - D(x, asked)) / t, asked at t unless told otherwise."""
    return (x - data(x, t if asked is None else asked)) / t


def first_slope(x, t, analytic):
    return x / (1 + t**2).sqrt() if analytic else slope(x, t)


def adams(history, order):
    """Newest first."""
    weights = ADAMS[min(order, len(history))]
    return sum(w * d for w, d in zip(weights, history, strict=False))


def fill(policy, seed=3):
    """Some learned numbers in place of the zeros."""
    with torch.no_grad():
        for i, parameter in enumerate(policy.free.parameters()):
            parameter.copy_(seeded(*parameter.shape, seed=seed + i))
    return policy

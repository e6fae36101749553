r"""EDM preconditioning (Karras et al., 2022, Table 1): a network F becomes a denoiser D.

.. math:: D(x, \sigma) = c_{skip} x + c_{out} F(c_{in} x, c_{noise}), \qquad c_{noise} = \ln(\sigma) / 4

The factors keep inputs and training targets at unit variance for every sigma. The denoiser answers
in noise form, (x - D) / sigma, because that is the slope of the ODE in sigma and what INDIS scales
with gamma.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from indis.numerics import broadcast


def denoise(
    network: Callable[[Tensor, Tensor], Tensor], x: Tensor, sigma: Tensor, sigma_data: float
) -> Tensor:
    """D(x, sigma) for ``x`` ``(batch, *shape)`` and ``sigma`` ``(batch,)``; ``network(c_in x,
    c_noise)`` is F.
    """
    total = (sigma**2 + sigma_data**2).sqrt()
    answer = network(x / broadcast(total, x), sigma.log() / 4)
    skip, out = sigma_data**2 / total**2, sigma * sigma_data / total
    return broadcast(skip, x) * x + broadcast(out, x) * answer


def noise_prediction(
    network: Callable[[Tensor, Tensor], Tensor], x: Tensor, sigma: Tensor, sigma_data: float
) -> Tensor:
    """The slope (x - D) / sigma, written without the cancellation that x - D has at small sigma.

    1 - c_skip = sigma^2 / total^2 and c_out / sigma = sigma_data / total, both exact.
    """
    total = (sigma**2 + sigma_data**2).sqrt()
    answer = network(x / broadcast(total, x), sigma.log() / 4)
    return broadcast(sigma / total**2, x) * x - broadcast(sigma_data / total, x) * answer

r"""EDM preconditioning (Karras et al., 2022, Table 1): a network F becomes a denoiser D.

.. math:: D(x, \sigma) = c_{skip} x + c_{out} F(c_{in} x, c_{noise}),
          \qquad c_{noise} = \ln(\sigma) / 4

The factors keep inputs and training targets at unit variance for every sigma. Denoisers answer in
noise form, (x - D) / sigma: the slope of the ODE in sigma, and what INDIS scales with gamma.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from indis.numerics import broadcast


def denoise(
    network: Callable[[Tensor, Tensor], Tensor], x: Tensor, sigma: Tensor, sigma_data: float
) -> Tensor:
    """Return the data prediction D(x, sigma).

    Args:
        network: F, a function of the scaled states ``(batch, *shape)`` and c_noise ``(batch,)``.
        x: states ``(batch, *shape)``.
        sigma: noise levels ``(batch,)``.
        sigma_data: the standard deviation of the data.

    Returns:
        ``(batch, *shape)``.
    """
    total = (sigma**2 + sigma_data**2).sqrt()
    answer = network(x / broadcast(total, x), sigma.log() / 4)
    skip, out = sigma_data**2 / total**2, sigma * sigma_data / total
    return broadcast(skip, x) * x + broadcast(out, x) * answer


def noise_prediction(
    network: Callable[[Tensor, Tensor], Tensor], x: Tensor, sigma: Tensor, sigma_data: float
) -> Tensor:
    """Return the noise prediction (x - D) / sigma, without the cancellation of x - D.

    With total^2 = sigma^2 + sigma_data^2 it is sigma / total^2 x - sigma_data / total F, since
    1 - c_skip = sigma^2 / total^2 and c_out / sigma = sigma_data / total.

    Args:
        network: F, a function of the scaled states ``(batch, *shape)`` and c_noise ``(batch,)``.
        x: states ``(batch, *shape)``.
        sigma: noise levels ``(batch,)``.
        sigma_data: the standard deviation of the data.

    Returns:
        ``(batch, *shape)``.
    """
    total = (sigma**2 + sigma_data**2).sqrt()
    answer = network(x / broadcast(total, x), sigma.log() / 4)
    return broadcast(sigma / total**2, x) * x - broadcast(sigma_data / total, x) * answer

r"""The Frechet distance between two sets of feature vectors, each given by mean and covariance.

.. math:: d^2 = |m_a - m_b|^2 + tr A + tr B - 2 tr (A^{1/2} B A^{1/2})^{1/2}

The last trace is the nuclear norm of :math:`A^{1/2} B^{1/2}`. So singular values of a product of
two symmetric roots suffice: there are no square roots of non-symmetric matrices and no complex
numbers, even if a covariance is singular.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


class Moments:
    """Streaming count, mean and covariance of features, in float64 on the CPU.

    ``mean`` is ``(dim,)``. ``scatter`` ``(dim, dim)`` is the sum of outer products of deviations
    from it, which two sets can merge without cancellation (Chan, Golub and LeVeque, 1979).

    Args:
        dim: the dimension of the features.
    """

    def __init__(self, dim: int) -> None:
        self.count = 0
        self.mean = torch.zeros(dim, dtype=torch.float64)
        self.scatter = torch.zeros(dim, dim, dtype=torch.float64)

    @property
    def covariance(self) -> Tensor:
        """Return the unbiased covariance ``(dim, dim)``.

        Raises:
            ValueError: if fewer than two vectors were seen.
        """
        if self.count < 2:
            raise ValueError(
                f"a covariance of {self.count} feature vectors was asked for, at least 2 are needed"
            )
        return self.scatter / (self.count - 1)

    def update(self, features: Tensor) -> None:
        """Add a batch of features ``(batch, dim)`` of any float dtype, on any device.

        Raises:
            ValueError: if the shape does not fit or a value is not finite; the moments are then
                unchanged.
        """
        if features.ndim != 2 or features.shape[1] != len(self.mean):
            raise ValueError(
                f"features has shape {tuple(features.shape)}, (batch, {len(self.mean)}) is expected"
            )
        if not torch.isfinite(features).all():
            raise ValueError(
                "features holds values that are not finite, only finite numbers have moments"
            )
        if len(features):
            self.merge(_moments(features.detach().double().cpu()))

    def merge(self, other: Moments) -> None:
        """Add everything that ``other`` has seen.

        Raises:
            ValueError: if the dimensions differ.
        """
        _check_dims(self, other)
        total = self.count + other.count
        if other.count == 0:
            return
        apart = other.mean - self.mean
        self.scatter = (
            self.scatter
            + other.scatter
            + torch.outer(apart, apart) * (self.count * other.count / total)
        )
        self.mean = self.mean + apart * (other.count / total)
        self.count = total

    def to_tensors(self) -> dict[str, Tensor]:
        """Return three tensors for a safetensors file: count, mean and scatter."""
        return {"count": torch.tensor(self.count), "mean": self.mean, "scatter": self.scatter}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> Moments:
        """Return the moments that :meth:`to_tensors` stored.

        Raises:
            ValueError: if a tensor is missing or the shapes disagree.
        """
        if missing := {"count", "mean", "scatter"} - tensors.keys():
            raise ValueError(
                f"tensors lacks {sorted(missing)}, what Moments.to_tensors returns is expected"
            )
        mean, scatter = tensors["mean"].double(), tensors["scatter"].double()
        if mean.ndim != 1 or scatter.shape != (len(mean), len(mean)):
            raise ValueError(
                f"mean {tuple(mean.shape)} and scatter {tuple(scatter.shape)} are not of one "
                "dimension"
            )
        moments = cls(len(mean))
        moments.count, moments.mean, moments.scatter = int(tensors["count"]), mean, scatter
        return moments


def frechet_distance(a: Moments, b: Moments) -> float:
    """Return the squared Frechet distance, as is the custom.

    It is never negative, and zero for equal moments up to rounding.

    Args:
        a: moments of one set.
        b: moments of another.

    Raises:
        ValueError: if the dimensions differ or a side has seen fewer than two vectors.
    """
    _check_dims(a, b)
    root_a, root_b = _symmetric_root(a.covariance), _symmetric_root(b.covariance)
    # The squared Frobenius norm of a root is the trace, and stays consistent with clamped
    # eigenvalues.
    spread = (
        root_a.square().sum()
        + root_b.square().sum()
        - 2 * torch.linalg.svdvals(root_a @ root_b).sum()
    )
    return ((a.mean - b.mean).square().sum() + spread.clamp(min=0)).item()


def _moments(features: Tensor) -> Moments:
    moments = Moments(features.shape[1])
    moments.count, moments.mean = len(features), features.mean(0)
    deviations = features - moments.mean
    moments.scatter = deviations.T @ deviations
    return moments


def _symmetric_root(matrix: Tensor) -> Tensor:
    """The symmetric root of a positive semi-definite matrix."""
    values, vectors = torch.linalg.eigh(matrix)
    # A zero eigenvalue comes out as rounding of either sign, and the root of 1e-16 would be an
    # error of 1e-8.
    rounding = len(values) * torch.finfo(values.dtype).eps * values[-1]
    return (vectors * values.where(values > rounding, 0).sqrt()) @ vectors.T


def _check_dims(a: Moments, b: Moments) -> None:
    if len(a.mean) != len(b.mean):
        raise ValueError(
            f"moments of dimension {len(a.mean)} and {len(b.mean)} were given, one dimension is "
            "expected"
        )

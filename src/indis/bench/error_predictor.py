"""A network that foresees how far from the teacher a sample will end at each number of steps.

It reads what phi reads and answers with the logarithm of the *expected* loss. Losses are
heavy-tailed, so it is tuned by the likelihood of an exponential distribution, whose optimum is the
mean and whose gradient no outlier dominates.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from indis.policies.encoders import Encoder


class ErrorPredictor(nn.Module):
    """Log expected loss ``(batch, counts)``; ``counts`` are the numbers of steps it knows."""

    def __init__(
        self,
        counts: Sequence[int],
        *,
        shape: Sequence[int],
        condition_dim: int = 0,
        width: int = 128,
        depth: int = 3,
    ) -> None:
        super().__init__()
        self.counts, self.shape, self.condition_dim = tuple(counts), tuple(shape), condition_dim
        self.width, self.depth = width, depth
        self.encoder = Encoder(self.shape, condition_dim, width, depth)
        self.head = nn.Linear(width, len(self.counts))
        nn.init.zeros_(self.head.weight)

    def forward(self, noise: Tensor, features: Tensor | None = None) -> Tensor:
        """From unit noise ``(batch, *shape)`` and condition features ``(batch, condition_dim)``."""
        log_mean: Tensor = self.head(self.encoder(noise, features))
        return log_mean

    def describe(self) -> dict[str, Any]:
        """The arguments it is built from, as JSON."""
        return {
            "counts": list(self.counts),
            "shape": list(self.shape),
            "condition_dim": self.condition_dim,
            "width": self.width,
            "depth": self.depth,
        }


def deviance(log_mean: Tensor, losses: Tensor) -> Tensor:
    """Minus the log-likelihood of losses under exponential distributions of these means;
    elementwise.
    """
    return losses * (-log_mean).exp() + log_mean

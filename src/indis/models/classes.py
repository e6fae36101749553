"""The condition of models whose samples have classes."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from indis.denoise import Condition


def class_condition(labels: Tensor, count: int) -> Condition:
    """Return the condition of class labels.

    Args:
        labels: ``(batch,)`` in 0 ... count - 1, or ``count`` for no label.
        count: number of classes.

    Returns:
        The labels as the network's input, and as features a one-hot vector over the root of
        ``count``, all zero for no label.

    Raises:
        ValueError: if a label is out of range.
    """
    if labels.numel() and not (int(labels.min()) >= 0 and int(labels.max()) <= count):
        raise ValueError(
            f"label must be 0 ... {count - 1} or {count} for no label, "
            f"got {sorted(set(labels.tolist()))}"
        )
    return Condition({"label": labels}, one_hot(labels, count) / count**0.5)


def one_hot(labels: Tensor, count: int) -> Tensor:
    """Return ``(batch, count)``, float32; a row of zeros for the label ``count``, which is none."""
    return F.one_hot(labels, count + 1)[:, :count].float()

"""Evaluation: a sampler, a denoiser and seeds to numbers.

Two questions are kept apart. *Does a sample end where the teacher ends?* is asked pair by pair on
held-out endpoints (a loss and the mean square error). *Do the samples look like the data?* is asked
of the whole set (Frechet distance of features). The number of network evaluations is counted by a
wrapper, not computed. Everything runs where the denoiser is, and samplers and losses are moved
there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from indis.denoise import Condition, Counted, Denoiser, to_device_of
from indis.endpoints import Endpoints, noise_from_seeds
from indis.losses import Loss, mse
from indis.sampler import Sampler

Row = dict[str, Any]
Draw = Callable[[Denoiser, Tensor, Condition], Tensor]  # a sampler, of whatever kind


@dataclass(frozen=True)
class PairScores:
    """Means over held-out pairs."""

    heldout_loss: float
    teacher_mse: float
    pairs: int

    def row(self) -> Row:
        """As columns of a result row."""
        return asdict(self)


def sample_batches(
    denoiser: Denoiser, sampler: Draw, seeds: Sequence[int], batch: int = 250
) -> Iterator[Tensor]:
    """Decoded samples ``(<= batch, *shape)`` of consecutive seeds under their default conditions,
    on the device.
    """
    sampler = to_device_of(sampler, denoiser)
    for start in range(0, len(seeds), batch):
        part = list(seeds[start : start + batch])
        with torch.inference_mode():
            samples = denoiser.decode(sampler(denoiser, *_start(denoiser, part)))
        yield samples  # outside, since a generator's context would reach into its caller


def score_pairs(
    denoiser: Denoiser, sampler: Draw, data: Endpoints, loss: Loss, batch: int = 500
) -> PairScores:
    """The loss and the mean square error to the teacher on held-out endpoints."""
    sampler, loss = to_device_of(sampler, denoiser), to_device_of(loss, denoiser)
    sums = torch.zeros(2, dtype=torch.float64)
    for start in range(0, len(data), batch):
        part = to_device_of(data[start : start + batch], denoiser)
        with torch.no_grad():
            student = denoiser.decode(sampler(denoiser, part.noise, part.condition))
            target = denoiser.decode(part.target)
            sums += torch.stack(
                [loss(student, target).double().sum(), mse(student, target).double().sum()]
            ).cpu()
    heldout, error = (sums / len(data)).tolist()
    return PairScores(heldout, error, len(data))


def counted_nfe(denoiser: Denoiser, sampler: Sampler) -> int:
    """Network evaluations of one sample, counted."""
    counter = Counted(denoiser)
    with torch.inference_mode():
        to_device_of(sampler, denoiser)(counter, *_start(denoiser, [0]))
    return counter.samples


def _start(denoiser: Denoiser, seeds: list[int]) -> tuple[Tensor, Condition]:
    """The noise and the condition that seeds name, where the denoiser is."""
    return to_device_of(noise_from_seeds(seeds, denoiser.shape), denoiser), to_device_of(
        denoiser.condition(seeds), denoiser
    )


def frechet_of_seeds(
    denoiser: Denoiser,
    sampler: Draw,
    seeds: Sequence[int],
    *,
    folder: Path | None = None,
    on_batch: Callable[[int], None] = lambda count: None,
) -> float:
    """FD-Fashion of the samples of ``seeds``; see :func:`frechet_of_images`."""
    return frechet_of_images(
        sample_batches(denoiser, sampler, seeds), folder=folder, on_batch=on_batch
    )


def frechet_of_images(
    images: Iterator[Tensor],
    *,
    folder: Path | None = None,
    on_batch: Callable[[int], None] = lambda count: None,
) -> float:
    """FD-Fashion of a stream of image batches: Frechet distance to the training images in the
    shipped feature network.

    Not FID: the network is a small Fashion-MNIST classifier, so values compare only with each
    other. ``folder`` holds another one and its moments (``indis train-model --what features``);
    ``on_batch`` is told how many images are done.

    Raises:
        FileNotFoundError: if there is none in it.
        ValueError: if it is damaged.
    """
    from indis.metrics.frechet import Moments, frechet_distance
    from indis.models import fashion_features as features

    folder = folder or features.FOLDER
    network = features.load(folder / features.WEIGHTS.name)
    reference = features.load_moments(folder / features.MOMENTS.name)
    moments = Moments(features.POOLED)
    for batch in images:
        with torch.inference_mode():
            moments.update(network.to(batch.device).pooled(batch))
        on_batch(moments.count)
    return frechet_distance(moments, reference)

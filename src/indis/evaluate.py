"""Evaluation: numbers for a sampler, from a denoiser and seeds.

Two questions are kept apart. *Does a sample end where the teacher ends?* is answered pair by pair
on held-out endpoints (a loss and the mean square error). *Do the samples look like the data?* is
answered for a whole set (Frechet distance of features). Network evaluations are counted by a
wrapper, not computed. Everything runs where the denoiser is; samplers, losses and feature
extractors are moved there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from indis.denoise import Condition, Counted, Denoiser, to_device_of
from indis.endpoints import Endpoints, noise_from_seeds
from indis.losses import Loss, mse
from indis.metrics.frechet import Moments, frechet_distance
from indis.pixels import as_stored
from indis.plan import Discretization
from indis.sampler import Sampler

Row = dict[str, Any]
Draw = Callable[[Denoiser, Tensor, Condition], Tensor]  # a sampler of any kind
Extractor = Callable[[Tensor], Tensor]  # images (batch, *shape) to features (batch, dim)


@dataclass(frozen=True)
class PairScores:
    """Mean loss and mean square error to the teacher over held-out pairs, and their number."""

    heldout_loss: float
    teacher_mse: float
    pairs: int

    def row(self) -> Row:
        """Return the scores as columns of a result row."""
        return asdict(self)


def sample_batches(
    denoiser: Denoiser, sampler: Draw, seeds: Sequence[int], batch: int = 250
) -> Iterator[Tensor]:
    """Yield decoded samples of consecutive seeds under their default conditions.

    Args:
        denoiser: the model.
        sampler: the sampler, moved to the denoiser's device.
        seeds: the seeds of the samples.
        batch: how many are drawn at once.

    Yields:
        Samples ``(at most batch, *shape)`` on the denoiser's device.
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
    """Return the loss and the mean square error to the teacher on held-out endpoints.

    Args:
        denoiser: the model.
        sampler: the student.
        data: held-out endpoints.
        loss: the loss of decoded samples.
        batch: how many pairs are judged at once.
    """
    loss = to_device_of(loss, denoiser)
    sums = torch.zeros(2, dtype=torch.float64)
    for pair in _decoded_pairs(denoiser, sampler, data, batch):
        with torch.no_grad():
            sums += torch.stack([one(*pair).double().sum() for one in (loss, mse)]).cpu()
    heldout, error = (sums / len(data)).tolist()
    return PairScores(heldout, error, len(data))


def losses_of_pairs(
    denoiser: Denoiser, sampler: Draw, data: Endpoints, loss: Loss, batch: int = 250
) -> Tensor:
    """Return the loss of each of the endpoints, ``(len(data),)``, on the CPU.

    Args:
        denoiser: the model.
        sampler: the student.
        data: endpoints.
        loss: the loss of decoded samples.
        batch: how many pairs are judged at once.
    """
    loss = to_device_of(loss, denoiser)
    found = []
    for pair in _decoded_pairs(denoiser, sampler, data, batch):
        with torch.no_grad():
            found.append(loss(*pair).cpu())
    return torch.cat(found)


def _decoded_pairs(
    denoiser: Denoiser, sampler: Draw, data: Endpoints, batch: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Decoded samples of the student and of the teacher, batch by batch."""
    sampler = to_device_of(sampler, denoiser)
    for start in range(0, len(data), batch):
        part = to_device_of(data[start : start + batch], denoiser)
        with torch.no_grad():
            student = denoiser.decode(sampler(denoiser, part.noise, part.condition))
            target = denoiser.decode(part.target)
        yield student, target


def realized_plans(denoiser: Denoiser, sampler: Sampler, seeds: Sequence[int]) -> Discretization:
    """Return the plans that seeds turn out to have, a row each, or one row that all share.

    Args:
        denoiser: the model.
        sampler: the sampler, moved to the denoiser's device.
        seeds: the seeds of the samples.
    """
    with torch.no_grad():
        noise, condition = _start(denoiser, list(seeds))
        return to_device_of(sampler, denoiser).realized_plan(denoiser, noise, condition)


def counted_nfe(denoiser: Denoiser, sampler: Sampler) -> int:
    """Return the network evaluations of one sample, counted by running it."""
    counter = Counted(denoiser)
    with torch.inference_mode():
        to_device_of(sampler, denoiser)(counter, *_start(denoiser, [0]))
    return counter.samples


def frechet_of_seeds(
    denoiser: Denoiser,
    sampler: Draw,
    seeds: Sequence[int],
    extract: Extractor,
    reference: Moments,
    *,
    on_batch: Callable[[int], None] = lambda count: None,
) -> float:
    """Return the Frechet distance of the samples of ``seeds``; see :func:`frechet_of_images`."""
    images = sample_batches(denoiser, sampler, seeds)
    return frechet_of_images(images, extract, reference, on_batch=on_batch)


def frechet_of_images(
    images: Iterable[Tensor],
    extract: Extractor,
    reference: Moments,
    *,
    on_batch: Callable[[int], None] = lambda count: None,
) -> float:
    """Return the Frechet distance of a stream of image batches to a reference set.

    Images are judged as the 8-bit pictures that people see: few steps leave many float pixels
    outside [-1, 1], and clipping them changes the order of samplers. It is called FID only if the
    features are Inception's; distances in other features compare only with each other.

    Args:
        images: batches ``(batch, *shape)`` in [-1, 1].
        extract: a function from images to features ``(batch, dim)``; a module is moved to where
            the images are.
        reference: the moments of the reference set's features.
        on_batch: called after each batch with the number of images so far.

    Raises:
        ValueError: if features have another dimension than the reference's, or are not finite.
    """
    moments = moments_of_images(images, extract, len(reference.mean), on_batch=on_batch)
    return frechet_distance(moments, reference)


def moments_of_images(
    images: Iterable[Tensor],
    extract: Extractor,
    dim: int,
    *,
    on_batch: Callable[[int], None] = lambda count: None,
) -> Moments:
    """Return the moments of the features of a stream of images, clipped and rounded to 8 bits.

    Args:
        images: batches ``(batch, *shape)`` in [-1, 1].
        extract: as in :func:`frechet_of_images`.
        dim: the number of features.
        on_batch: called after each batch with the number of images so far.

    Raises:
        ValueError: if there is another number of features, or they are not finite.
    """
    moments = Moments(dim)
    for batch in images:
        if isinstance(extract, torch.nn.Module):
            extract = extract.to(batch.device)
        with torch.inference_mode():
            moments.update(extract(as_stored(batch)))
        on_batch(moments.count)
    return moments


def _start(denoiser: Denoiser, seeds: list[int]) -> tuple[Tensor, Condition]:
    """The noise and the default condition of seeds, where the denoiser is."""
    noise, condition = noise_from_seeds(seeds, denoiser.shape), denoiser.condition(seeds)
    return to_device_of(noise, denoiser), to_device_of(condition, denoiser)

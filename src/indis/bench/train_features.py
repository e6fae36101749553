"""Training the feature network: a Fashion-MNIST classifier in a few minutes of two CPU cores.

AdamW with a short linear warm-up and a cosine to zero, label smoothing, random flips and shifts by
up to a pixel. Batch i is a pure function of (seed, i), so the whole run is one of the config (and
of the machine's arithmetic).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from indis.metrics.frechet import Moments
from indis.models.fashion_features import MOMENTS, POOLED, WEIGHTS, FashionFeatures, load
from indis.numerics import seeded
from indis.pixels import to_pixels
from indis.recipe import descend
from indis.storage import save_tensors


@dataclass(frozen=True)
class FeatureConfig:
    """How the feature network is trained."""

    epochs: int = 9
    batch: int = 128
    lr: float = 3e-3
    warmup: int = 200  # steps of linear warm-up
    weight_decay: float = 0.05
    label_smoothing: float = 0.05
    shift: int = 1  # largest shift of an image, pixels
    bf16: bool = True
    seed: int = 0


@dataclass(frozen=True)
class FeatureProgress:
    """One optimizer step: its number (from 1), its loss and, at an epoch's end, the test
    accuracy.
    """

    step: int
    loss: float
    accuracy: float | None = None


class FeatureTrainer:
    """The training state. Iterate :meth:`run` to the end, then :meth:`write`.

    Images are uint8 ``(count, 1, 28, 28)`` and labels int64 ``(count,)``, as
    :func:`indis.models.fashion_data.read` returns them.
    """

    def __init__(self, config: FeatureConfig | None = None) -> None:
        self.config = config or FeatureConfig()
        self.accuracy: float | None = None
        with seeded(self.config.seed):
            network = FashionFeatures()
        last = torch.channels_last
        self.network = network.to(memory_format=last)  # type: ignore[call-overload]
        self.optimizer = torch.optim.AdamW(
            self.network.parameters(), lr=self.config.lr, weight_decay=self.config.weight_decay
        )

    def run(
        self, train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor]
    ) -> Iterator[FeatureProgress]:
        """Train on (images, labels) to the end of the config; the accuracy is that on ``test``.

        Raises:
            ValueError: if there is not one whole batch of training images.
            FloatingPointError: if the loss stops being finite.
        """
        per_epoch = len(train[0]) // self.config.batch
        if per_epoch == 0:
            raise ValueError(
                f"train holds {len(train[0])} images, at least one batch of {self.config.batch} "
                "is needed"
            )
        steps = self.config.epochs * per_epoch

        def objective(step: int) -> Tensor:
            return self._loss(*_batch(self.config, *divmod(step, per_epoch), *train))

        run = descend(
            self.optimizer,
            objective,
            iterations=steps,
            lr=self.config.lr,
            warmup=self.config.warmup,
        )
        for step, loss in run:
            ends = step % per_epoch == 0
            if ends:
                self.accuracy = accuracy(self.network, *test)
            yield FeatureProgress(step, loss, self.accuracy if ends else None)

    def write(self, folder: Path, images: Tensor) -> None:
        """Store float16 weights and the float64 moments of ``images`` under the names of the
        shipped files.

        The moments are those of the rounded weights, the ones that
        :func:`indis.models.fashion_features.load` will return.
        """
        meta = {"accuracy": self.accuracy, **asdict(self.config)}
        state = self.network.state_dict().items()
        rounded = {k: v.half() if v.is_floating_point() else v for k, v in state}
        save_tensors(folder / WEIGHTS.name, rounded, meta)
        moments = pooled_moments(load(folder / WEIGHTS.name), images)
        about = {"images": moments.count, "split": "train", "flips": False, "features": meta}
        save_tensors(folder / MOMENTS.name, moments.to_tensors(), about)

    def _loss(self, x: Tensor, labels: Tensor) -> Tensor:
        self.network.train()
        with torch.autocast("cpu", torch.bfloat16, enabled=self.config.bf16):
            logits = self.network(x)
        return F.cross_entropy(logits.float(), labels, label_smoothing=self.config.label_smoothing)


@torch.no_grad()
def accuracy(network: FashionFeatures, images: Tensor, labels: Tensor, batch: int = 500) -> float:
    """The fraction of uint8 ``images`` that the network, put in evaluation mode, classifies as
    ``labels``.
    """
    network.eval()
    pairs = zip(images.split(batch), labels.split(batch), strict=True)
    return sum((network(to_pixels(x)).argmax(1) == y).sum().item() for x, y in pairs) / len(images)


@torch.no_grad()
def pooled_moments(network: FashionFeatures, images: Tensor, batch: int = 500) -> Moments:
    """Moments of the pooled features of uint8 ``images`` ``(count, 1, 28, 28)``."""
    moments = Moments(POOLED)
    for part in images.split(batch):
        moments.update(network.pooled(to_pixels(part)))
    return moments


def _batch(
    config: FeatureConfig, epoch: int, index: int, images: Tensor, labels: Tensor
) -> tuple[Tensor, Tensor]:
    """Augmented pixels and labels of one step, a pure function of (seed, epoch, index)."""
    seed = config.seed * 1_000_003 + epoch
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    chosen = order[index * config.batch : (index + 1) * config.batch]
    generator = torch.Generator().manual_seed(seed * 1_000_003 + index + 1)
    x = _augment(to_pixels(images[chosen]), config.shift, generator)
    return x.contiguous(memory_format=torch.channels_last), labels[chosen]


def _augment(x: Tensor, shift: int, generator: torch.Generator) -> Tensor:
    """Flip every second image on average and move each by up to ``shift`` pixels, black filling the
    gap.
    """
    count, _, height, width = x.shape
    down, right = torch.randint(0, 2 * shift + 1, (2, count, 1), generator=generator)
    rows, columns = down + torch.arange(height), right + torch.arange(width)
    flip = torch.rand(count, 1, generator=generator) < 0.5
    columns = torch.where(flip, columns.flip(1), columns)
    padded = F.pad(x, [shift] * 4, value=-1)[:, 0]
    return padded[torch.arange(count)[:, None, None], rows[:, :, None], columns[:, None, :]][
        :, None
    ]

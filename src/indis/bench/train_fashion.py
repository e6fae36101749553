"""Training the Fashion-MNIST denoiser: the EDM recipe at the size of two CPU cores.

Noise levels are log-normal, ln sigma ~ N(-1.0, 1.2^2); the loss is EDM's weighted denoising error;
labels are dropped 10 % of the time; images are flipped half of the time. What ships is the
exponential moving average of the weights. Batch i is a pure function of (seed, i), so a resumed run
sees the data that an uninterrupted one would have seen.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from indis.checks import require_least
from indis.models import fashion
from indis.models.edm.preconditioning import denoise
from indis.numerics import seeded
from indis.pixels import to_pixels
from indis.sealed import load_checkpoint, pack_optimizer, save_checkpoint, unpack_optimizer
from indis.storage import malformed, save_tensors, section


@dataclass(frozen=True)
class TrainConfig:
    """How the denoiser is trained."""

    images: int = 1_000_000
    """Number of images that are seen in all."""
    batch: int = 128
    """Number of images in a step."""
    lr: float = 1e-3
    """Learning rate."""
    warmup: int = 200
    """Number of steps in which the learning rate rises from zero."""
    ema: float = 0.999
    """Decay of the average of the weights at each step, reached gradually."""
    label_dropout: float = 0.1
    """Part of the images that are shown without their label."""
    log_sigma_mean: float = -1.0
    """Mean of the logarithm of the noise levels that are trained on."""
    log_sigma_std: float = 1.2
    """Standard deviation of that logarithm."""
    bf16: bool = True
    """Train under bfloat16 autocast."""
    seed: int = 0
    """Seed of the initial weights and the batches."""

    def __post_init__(self) -> None:
        require_least(self, images=1, batch=1, warmup=0, seed=0)
        for name in ("lr", "log_sigma_std"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        if not 0 <= self.ema < 1:
            raise ValueError(f"ema must be in [0, 1), got {self.ema}")
        if not 0 <= self.label_dropout <= 1:
            raise ValueError(f"label-dropout must be in [0, 1], got {self.label_dropout}")

    @property
    def steps(self) -> int:
        """Optimizer steps."""
        return max(1, self.images // self.batch)

    def lr_at(self, step: int) -> float:
        """Linear warm-up, then cosine to zero."""
        if step < self.warmup:
            return self.lr * (step + 1) / self.warmup
        return self.lr * (1 + math.cos(math.pi * step / self.steps)) / 2


@dataclass(frozen=True)
class TrainProgress:
    """One optimizer step: its number (from 1) and its loss."""

    step: int
    loss: float


class Trainer:
    """The training state: raw weights, averaged weights, optimizer, step. Iterate :meth:`run`; save
    when you like.
    """

    def __init__(self, config: TrainConfig, *, init: Path | None = None) -> None:
        self.config, self.step = config, 0
        # The initial weights belong to the run's seed; drawing them must not disturb the caller's
        # generator.
        with seeded(config.seed):
            self.network = fashion.FashionNetwork()
        if init is not None:
            fashion.fill(self.network, init)
        self.average = {k: v.detach().clone() for k, v in self.network.state_dict().items()}
        self.optimizer = torch.optim.AdamW(
            self.network.parameters(), lr=config.lr, betas=(0.9, 0.99), weight_decay=0
        )

    def run(self, images: Tensor, labels: Tensor) -> Iterator[TrainProgress]:
        """Train to the end of the config on uint8 ``images`` ``(count, 1, 28, 28)`` and ``labels``
        ``(count,)``.

        Raises:
            FloatingPointError: if the loss stops being finite; the state is then the last good one.
        """
        while self.step < self.config.steps:
            loss = self._loss(*_batch(self.config, self.step, images, labels))
            if not torch.isfinite(loss):
                raise FloatingPointError(
                    f"the training loss became {loss.item()} at step {self.step + 1}"
                )
            self._update(loss)
            yield TrainProgress(self.step, loss.item())

    def save(self, path: Path) -> None:
        """Write a checkpoint that :meth:`resume` continues from."""
        raw = {f"network.{k}": v for k, v in self.network.state_dict().items()}
        average = {f"average.{k}": v for k, v in self.average.items()}
        meta = {"config": asdict(self.config), "step": self.step}
        save_checkpoint(path, raw | average | pack_optimizer(self.optimizer), meta)

    def resume(self, path: Path) -> None:
        """Continue from a checkpoint.

        Raises:
            ValueError: if it was written under another config, or is no checkpoint.
        """
        tensors, meta = load_checkpoint(path, "config", "step")
        if meta["config"] != asdict(self.config):
            raise ValueError(f"{path} was written with another config: {meta['config']}")
        with malformed(path, "checkpoint"):
            self.network.load_state_dict(section(tensors, "network."))
            self.average = section(tensors, "average.")
            unpack_optimizer(self.optimizer, tensors)
            self.step = int(meta["step"])

    def export(self, path: Path) -> None:
        """Write the averaged weights as float16, the file that :func:`indis.models.fashion.load`
        reads.
        """
        save_tensors(
            path,
            {k: v.half() for k, v in self.average.items()},
            {"images": self.step * self.config.batch},
        )

    def _loss(self, x: Tensor, labels: Tensor, sigma: Tensor, noise: Tensor) -> Tensor:
        """EDM's weighted denoising error, which is the mean square error of F against its
        unit-variance target.
        """
        sd = fashion.PRECOND.sigma_data
        noisy = x + sigma[:, None, None, None] * noise

        def network(scaled: Tensor, level: Tensor) -> Tensor:
            with torch.autocast("cpu", torch.bfloat16, enabled=self.config.bf16):
                return self.network(scaled, level, labels).float()

        weight = (sigma**2 + sd**2) / (sigma * sd) ** 2
        error = (denoise(network, noisy, sigma, fashion.PRECOND) - x).square().mean((1, 2, 3))
        return (weight * error).mean()

    def _update(self, loss: Tensor) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.lr_at(self.step)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        self.optimizer.step()
        self.step += 1
        # A short memory at first, so that the average forgets the initialisation quickly.
        decay = min(self.config.ema, (self.step + 1) / (self.step + 10))
        for name, value in self.network.state_dict().items():
            self.average[name].lerp_(value, 1 - decay)


def _batch(
    config: TrainConfig, step: int, images: Tensor, labels: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Pixels, labels, noise levels and noise of one step, a pure function of (seed, step)."""
    generator = torch.Generator().manual_seed(config.seed * 1_000_003 + step)
    index = torch.randint(len(images), (config.batch,), generator=generator)
    x, y = to_pixels(images[index]), labels[index].clone()
    flip = torch.rand(config.batch, generator=generator) < 0.5
    x[flip] = x[flip].flip(-1)
    y[torch.rand(config.batch, generator=generator) < config.label_dropout] = fashion.NO_LABEL
    level = torch.randn(config.batch, generator=generator)
    sigma = (config.log_sigma_mean + config.log_sigma_std * level).exp()
    return x, y, sigma, torch.randn(x.shape, generator=generator)

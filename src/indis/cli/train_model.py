"""``indis train-model``: train what ships."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from indis.cli.console import bar, say, writable
from indis.models.fashion_data import DEBIAN_FOLDER, read
from indis.models.fashion_training import TrainConfig


@dataclass(frozen=True)
class TrainModel:
    """Train the Fashion-MNIST denoiser (EDM, moving average, label dropout), or the feature network; resumes.

    Example: indis train-model --out runs/fashion --images 1000000

    Example: indis train-model --out runs/longer --images 250000 --lr 4e-4 --init runs/fashion/fashion.safetensors

    Example: indis train-model --out runs/features --what features
    """

    out: Path
    """Folder of the checkpoint and of the exported weights."""
    what: Literal["denoiser", "features"] = "denoiser"
    """The denoiser, or the feature network of FD-Fashion and the perceptual distance."""
    data: Path = DEBIAN_FOLDER
    """Folder of the *-ubyte.gz files; Debian: apt-get install dataset-fashion-mnist."""
    init: Path | None = None
    """Weights to start from."""
    config: Annotated[TrainConfig, tyro.conf.arg(name="")] = field(default_factory=TrainConfig)
    """The denoiser's training."""
    save_every: int = 500
    """Steps between checkpoints."""

    def run(self) -> None:
        """Train."""
        if self.save_every < 1:
            raise ValueError(f"save-every must be at least 1, got {self.save_every}")
        writable(self.out)
        if self.what == "features":
            self._features()
        else:
            self._denoiser()

    def _denoiser(self) -> None:
        from indis.models.fashion_training import Trainer

        trainer, checkpoint = Trainer(self.config, init=self.init), self.out / "checkpoint.safetensors"
        images, labels = read("train", self.data)
        if checkpoint.exists():
            trainer.resume(checkpoint)
            say(f"resuming at step {trainer.step} of {self.config.steps}")
        with bar() as progress:
            task = progress.add_task("training", total=self.config.steps, completed=trainer.step)
            for state in trainer.run(images, labels):
                progress.update(task, completed=state.step, description=f"training, loss {state.loss:.3f}")
                if state.step % self.save_every == 0:
                    trainer.save(checkpoint)
        trainer.save(checkpoint)
        trainer.export(self.out / "fashion.safetensors")
        say(f"weights in {self.out / 'fashion.safetensors'}")

    def _features(self) -> None:
        from indis.metrics.features_training import FeatureConfig, FeatureTrainer

        train, test = read("train", self.data), read("t10k", self.data)
        trainer = FeatureTrainer(FeatureConfig())
        with bar() as progress:
            task = progress.add_task("training features", total=None)
            for state in trainer.run(train, test):
                progress.update(task, completed=state.step, description=f"training features, loss {state.loss:.3f}")
        trainer.write(self.out, train[0])
        say(f"test accuracy {trainer.accuracy:.4f}, weights and reference moments in {self.out}")

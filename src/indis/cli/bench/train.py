"""``indis bench train``: train the models that ship."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from indis.bench.train_fashion import TrainConfig
from indis.cli.console import JsonFile, bar, emit, say
from indis.cli.paths import writable, writable_file
from indis.cli.signals import delayed_interrupt
from indis.models.fashion_data import DEBIAN_FOLDER, read
from indis.storage import checksum

CHECKPOINT = "checkpoint.safetensors"
OWN = (CHECKPOINT, "fashion*.safetensors")  # also the feature network's


@dataclass(frozen=True)
class TrainModel:
    """Train the Fashion-MNIST denoiser or the feature network.

    Run it again to resume the denoiser; the feature network begins again.

    Example: indis bench train --out runs/fashion --images 1000000

    Example: indis bench train --out runs/longer --images 250000 --init runs/fashion

    Example: indis bench train --out runs/judge --what features --seed 1
    """

    out: Path
    """Folder for the checkpoint and the weights."""
    what: Literal["denoiser", "features"] = "denoiser"
    """Network that is trained. FD-Fashion and the fashion losses use the features."""
    data: Path = DEBIAN_FOLDER
    """Folder of the data set's *-ubyte.gz files. Debian has them in dataset-fashion-mnist."""
    init: Path | None = None
    """Weights that the denoiser starts from, instead of random ones: a file or an earlier --out."""
    config: Annotated[TrainConfig, tyro.conf.arg(name="")] = field(default_factory=TrainConfig)
    """The denoiser's training."""
    save_every: int = 500
    """Steps between the denoiser's checkpoints. Ctrl-C writes one too."""
    json: JsonFile = None
    """Write what came out, and where it is."""

    @property
    def keeps(self) -> str | None:
        """The first file that an interrupted training leaves; that of features leaves none."""
        return None if self.what == "features" else CHECKPOINT

    def run(self) -> None:
        """Train."""
        if self.save_every < 1:
            raise ValueError(f"save-every must be at least 1, got {self.save_every}")
        if self.what == "features":
            self._check_features()
        writable(self.out)
        writable_file(self.json, {self.out: OWN})
        emit(self._features() if self.what == "features" else self._denoiser(), self.json)

    def _check_features(self) -> None:
        """Of options their training has the seed alone; one that did nothing would be taken for one
        that did.
        """
        usual = TrainModel(self.out)._denoiser_options()
        for name, given in self._denoiser_options().items():
            if given != usual[name] and name != "seed":
                raise ValueError(
                    f"{name.replace('_', '-')} must be left out with --what features, got {given}"
                )

    def _denoiser_options(self) -> dict[str, Any]:
        return {"init": self.init, "save_every": self.save_every, **asdict(self.config)}

    def _denoiser(self) -> dict[str, Any]:
        from indis.bench.train_fashion import Trainer

        trainer, checkpoint = Trainer(self.config, init=self.init), self.out / CHECKPOINT
        images, labels = read("train", self.data)
        if checkpoint.exists():
            trainer.resume(checkpoint)
            say(f"resuming at step {trainer.step} of {self.config.steps}")
        with bar() as progress, delayed_interrupt() as interrupted:
            task = progress.add_task("training", total=self.config.steps, completed=trainer.step)
            for state in trainer.run(images, labels):
                progress.update(
                    task, completed=state.step, description=f"training, loss {state.loss:.3f}"
                )
                if state.step % self.save_every == 0 or interrupted() is not None:
                    trainer.save(checkpoint)
                if (stop := interrupted()) is not None:
                    raise stop
        trainer.save(checkpoint)
        weights = self.out / "fashion.safetensors"
        trainer.export(weights)
        say(f"weights in {weights}")
        return {
            "weights": str(weights),
            "checksum": checksum(weights),
            "steps": trainer.step,
            **asdict(self.config),
        }

    def _features(self) -> dict[str, Any]:
        from indis.bench.train_features import FeatureConfig, FeatureTrainer
        from indis.models.fashion_features import MOMENTS, WEIGHTS

        train, test = read("train", self.data), read("t10k", self.data)
        trainer = FeatureTrainer(FeatureConfig(seed=self.config.seed))
        with bar() as progress:
            task = progress.add_task("training features", total=None)
            for state in trainer.run(train, test):
                progress.update(
                    task,
                    completed=state.step,
                    description=f"training features, loss {state.loss:.3f}",
                )
        trainer.write(self.out, train[0])
        say(f"test accuracy {trainer.accuracy:.4f}, weights and reference moments in {self.out}")
        files = {"weights": str(self.out / WEIGHTS.name), "moments": str(self.out / MOMENTS.name)}
        return {"accuracy": trainer.accuracy, **files, **asdict(trainer.config)}

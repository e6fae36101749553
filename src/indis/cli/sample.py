"""``indis sample``: draw samples with an artifact or a plain solver."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch

from indis.cli.console import JsonFile, bar, default, emit, say
from indis.cli.paths import writable_file
from indis.cli.pictures import Strip, save_sheet
from indis.cli.sampler import SamplerChoice, spent
from indis.denoise import ClassConditional, Counted, Denoiser
from indis.endpoints import check_seeds
from indis.evaluate import Draw, sample_batches
from indis.methods import heuristic
from indis.sampler import Sampler
from indis.storage import save_tensors

TEACHER_STEPS = 30
MOST_PICTURES, MOST_SAMPLES = 1000, 1_000_000  # samples are held in memory until they are written


@dataclass(frozen=True)
class Sample(SamplerChoice):
    """Draw samples. A sample is determined by its seed, whatever the batch size.

    Example: indis sample --artifact fashion-nfe3 --count 20 --teacher

    Example: indis sample --model fashion --solver unipc:3 --grid log_snr --steps 7
    """

    out: Path = Path("samples.png")
    """File for the samples: a .png picture of images, or a .safetensors file of anything."""
    first_seed: int = 0
    """Seed of the first sample. The others follow one by one."""
    count: int = 40
    """Number of samples, one for each seed."""
    label: Annotated[tuple[int, ...], default("the seed's own", "N [N ...]")] = ()
    """Classes that the seeds take in turn: 0 to 9 for fashion, or 10 for none."""
    prompt: Annotated[tuple[str, ...], default("the model's own", "TEXT [TEXT ...]")] = ()
    """Prompts that the seeds take in turn, for a pipeline of diffusers."""
    teacher: bool = False
    """Show the teacher's sample of the same seed below each one. It takes 30 steps of ipndm:3."""
    json: JsonFile = None
    """Write which samples these are, where, and what they cost."""

    def run(self) -> None:
        """Draw and write."""
        self._check()
        denoiser = self.load_model(self.model_spec)
        if self.label:
            denoiser = FixedLabels(denoiser, self.label)
        if self.prompt:
            denoiser = prompted(denoiser, self.prompt)
        counter = Counted(denoiser)
        sampler = self.build(denoiser)
        seeds = range(self.first_seed, self.first_seed + self.count)
        samples = torch.cat(list(drawn(counter, sampler, seeds)))
        taught = None
        if self.teacher:
            many = heuristic(denoiser, solver="ipndm:3", grid="natural", steps=TEACHER_STEPS)
            taught = torch.cat(list(drawn(denoiser, many, seeds, "teacher")))
        calls = counter.samples / self.count
        nfe = sampler.depth if isinstance(sampler, Sampler) else calls
        if self.out.suffix == ".png":
            strips = [Strip(samples, f"{self._title()}, {nfe:g} evaluations")]
            if taught is not None:
                strips.append(Strip(taught, f"teacher, {TEACHER_STEPS} evaluations"))
            save_sheet(strips, captions(denoiser, seeds), self.out)
        else:
            tensors = {"samples": samples, "seeds": torch.tensor(list(seeds))}
            if taught is not None:
                tensors["teacher"] = taught
            save_tensors(self.out, tensors)
        say(f"{self.count} samples with {spent(sampler, calls)} in {self.out}")
        emit(self._row(denoiser.name, nfe, calls), self.json)

    def _check(self) -> None:
        """Refuse what would fail later."""
        if self.out.suffix not in (".png", ".safetensors"):
            raise ValueError(f"out must end in .png or .safetensors, got {self.out}")
        most = MOST_PICTURES if self.out.suffix == ".png" else MOST_SAMPLES
        if not 1 <= self.count <= most:
            raise ValueError(
                f"count must be in 1 ... {most} for {self.out.suffix}, got {self.count}"
            )
        check_seeds(self.first_seed, self.count)
        writable_file(self.out)
        writable_file(self.json, {self.out: ()})

    def _title(self) -> str:
        if self.artifact is not None:
            return self.artifact.name
        plain = self.plain
        return f"{plain['solver']} on {plain['grid']}"

    def _row(self, model: str, nfe: float, calls: float) -> dict[str, Any]:
        """Return which samples these are, of what, and what was counted."""
        which: dict[str, Any] = {
            "model": model,
            "first_seed": self.first_seed,
            "count": self.count,
            "label": list(self.label),
        }
        if self.prompt:
            which["prompt"] = list(self.prompt)
        sampler = (
            {"artifact": str(self.artifact), "steps": self.steps} if self.artifact else self.plain
        )
        return {"out": str(self.out), **which, **sampler, "nfe": nfe, "calls": calls}


def prompted(denoiser: Denoiser, prompts: Sequence[str]) -> Denoiser:
    """Return a denoiser whose seeds take these prompts in turn.

    Raises:
        ValueError: If it reads none.
    """
    if not hasattr(denoiser, "prompted"):
        raise ValueError(
            f"prompt must be left out for {denoiser.name}, which reads none, got {list(prompts)}"
        )
    made: Denoiser = denoiser.prompted(prompts)
    return made


class FixedLabels(Counted):
    """A denoiser whose seeds take these labels in turn.

    Raises:
        ValueError: If it knows no labels, or not these.
    """

    def __init__(self, denoiser: Denoiser, labels: Sequence[int]) -> None:
        super().__init__(denoiser)
        if not isinstance(denoiser, ClassConditional):
            raise ValueError(
                f"label must be left out for {denoiser.name}, which has no classes, "
                f"got {list(labels)}"
            )
        class_condition = denoiser.class_condition
        class_condition(list(labels))  # refused before any work
        self.condition = lambda seeds: class_condition(
            [labels[seed % len(labels)] for seed in seeds]
        )
        self.class_names = getattr(denoiser, "class_names", ())


def drawn(
    denoiser: Denoiser, sampler: Draw, seeds: Sequence[int], text: str = "samples"
) -> Iterator[torch.Tensor]:
    """Yield the samples of seeds in batches, on the CPU, under a progress bar."""
    with bar() as progress:
        task = progress.add_task(text, total=len(seeds))
        for batch in sample_batches(denoiser, sampler, seeds):
            progress.update(task, advance=len(batch))
            yield batch.cpu()


def captions(denoiser: Denoiser, seeds: Sequence[int]) -> list[str]:
    """Return a caption for each seed: its class, if the model has any, and the seed."""
    names = getattr(denoiser, "class_names", ())
    labels = denoiser.condition(list(seeds)).inputs.get("label")
    if labels is None or not names:
        return [f"seed {seed}" for seed in seeds]
    named = [names[label] if label < len(names) else "any class" for label in labels.tolist()]
    return [f"{name}, seed {seed}" for name, seed in zip(named, seeds, strict=True)]

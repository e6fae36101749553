"""Small models and data sets that the tests of teaching, fitting, storing and judging share."""

from functools import cache
from pathlib import Path

import torch

from indis import (
    EDM,
    UNCONDITIONAL,
    Form,
    RectifiedFlow,
    Sampler,
    endpoint_batches,
    gather,
    heuristic,
    models,
)
from indis.models.fashion import class_condition
from indis.numerics import broadcast
from indis.sealed import save_record


@cache
def toy():
    return models.load("toy")


def toy_teacher(steps=30):
    return heuristic(toy(), solver="euler", grid="uniform", steps=steps)


@cache
def toy_pairs(count=96, first=0):
    """Endpoints of Euler-30 on consecutive seeds."""
    return gather(list(endpoint_batches(toy(), toy_teacher(), range(first, first + count))))


class TinyClasses:
    """Noise form, 4x4 images under Fashion's labels: cheap, smooth, and different for every
    class."""

    fingerprint = "tiny"
    name, schedule, shape, native = "tiny", EDM(), (1, 4, 4), Form.NOISE

    def __init__(self):
        self.asked = 0

    def __call__(self, x, t, condition):
        self.asked += len(x)
        label = broadcast(condition.inputs["label"].double(), x)
        return torch.tanh(x / broadcast(1 + t, x)) * (1 + label / 10)

    def decode(self, x):
        return x

    def condition(self, seeds):
        return class_condition(torch.tensor([seed % 10 for seed in seeds]))


class Still:
    """Nothing moves: the end point is the noise. Pixels are twice the latent."""

    fingerprint = "still"
    name, schedule, shape, native = "still", RectifiedFlow(), (3,), Form.VELOCITY

    def __call__(self, x, t, condition):
        return torch.zeros_like(x)

    def decode(self, x):
        return 2 * x

    def condition(self, seeds):
        return UNCONDITIONAL


def tiny_teacher(steps=4) -> Sampler:
    return heuristic(TinyClasses(), solver="euler", grid="polynomial:7", steps=steps)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, hidden ones included."""
    return {
        str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()
    }


def reseal(path: Path, record) -> None:
    """Write a sealed record as its file never was, with a checksum that fits."""
    content = {name: value for name, value in record.items() if name not in ("format", "sha256")}
    save_record(path, record.get("format", 1), content)


def folders(folder: Path) -> list[str]:
    """Every folder below a folder, empty ones included."""
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_dir())


def flip_last_byte(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)


def sentence(error) -> str:
    """The text of an expected error, which must be one line and no longer than a person reads."""
    text = str(error.value)
    assert text and "\n" not in text and len(text) < 400
    return text


def same_tensors(a, b) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)

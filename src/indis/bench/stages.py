"""What experiments on a bench share: making end points, and fitting with checkpoints."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

from indis.bench.suite import Bench
from indis.endpoints import TeachConfig, TeachProgress, read_meta, teach_folder
from indis.sealed import load_checkpoint, load_record, save_record
from indis.storage import exactly, malformed
from indis.tuning import Progress, Tuning

CHECKPOINT, CURVE = "checkpoint.safetensors", "curve.json"
FORMAT = 1
CURVE_FIELDS = ("label", "steps", "iteration", "heldout", "seconds")
FIRST_HELDOUT = 1_000_000  # seed of the first held-out end point


def make_endpoints(
    bench: Bench, folder: Path, count: int, first_seed: int
) -> Iterator[TeachProgress]:
    """Write the end points of a bench's teacher, or add to those that are there."""
    config = TeachConfig(count, first_seed, shard=_shard(bench, folder))
    made_with = bench.provenance() | {"bf16": bench.drawing is not bench.denoiser}
    yield from teach_folder(config, bench.drawing, bench.teacher, folder, provenance=made_with)


def _shard(bench: Bench, folder: Path) -> int:
    """End points a file. Older, smaller files are added to as they are."""
    match read_meta(folder) if (folder / "meta.json").exists() else None:
        case {"config": {"shard": int(size)}} if 0 < size < bench.shard:
            return size
    return bench.shard


def tune(
    process: Tuning, home: Path, key: str, label: str, nfe: int
) -> Generator[Progress, None, float]:
    """Fit with checkpoints, and write the learning curve beside them.

    The generator's value is the processor time that the fit took, earlier runs included. A
    checkpoint of another ``key`` is left alone and written over.

    Args:
        process: what is run.
        home: folder of checkpoint and curve.
        key: what the fit depends on, as a digest.
        label: what the curve is called.
        nfe: evaluations of the sampler.
    """
    checkpoint = home / CHECKPOINT
    before, started = 0.0, time.process_time()
    if checkpoint.exists() and load_checkpoint(checkpoint, "meta")[1]["meta"] == key:
        process.resume(checkpoint, key)
        if (home / CURVE).exists():  # not if it was killed before the first one
            before = read_curve(home)["seconds"]
    for state in process.run():
        yield state
        if state.heldout is not None or state.step == state.iterations:
            process.save(checkpoint, key)
            # Made from what the checkpoint holds, so that the two cannot disagree.
            curve = {
                "label": label,
                "steps": nfe,
                "iteration": [step for step, _ in process.curve],
                "heldout": [loss for _, loss in process.curve],
                "seconds": before + time.process_time() - started,
            }
            save_record(home / CURVE, FORMAT, curve)
    return before + time.process_time() - started


def read_curve(home: Path) -> dict[str, Any]:
    """Return the learning curve in a folder, and the processor time that it took."""
    stored = load_record(home / CURVE, FORMAT)
    del stored["format"]
    with malformed(home / CURVE, "curve"):
        return exactly(stored, CURVE_FIELDS)

"""What experiments on a bench share: making end points, and fitting with checkpoints."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

from indis.bench.suite import Bench
from indis.endpoints import TeachConfig, TeachProgress, teach_folder
from indis.storage import load_checkpoint, load_json, save_json
from indis.tuning import Progress, Tuning

CHECKPOINT, CURVE = "checkpoint.safetensors", "curve.json"
FIRST_HELDOUT = 1_000_000  # seed of the first held-out end point


def make_endpoints(
    bench: Bench, folder: Path, count: int, first_seed: int
) -> Iterator[TeachProgress]:
    """Write the end points of a bench's teacher, or add to those that are there."""
    config = TeachConfig(count, first_seed, shard=_shard(bench, folder / "meta.json"))
    made_with = bench.provenance() | {"bf16": bench.drawing is not bench.denoiser}
    yield from teach_folder(config, bench.drawing, bench.teacher, folder, provenance=made_with)


def _shard(bench: Bench, meta: Path) -> int:
    """End points a file. Older, smaller files are added to as they are."""
    match load_json(meta) if meta.exists() else None:
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
    curve: dict[str, Any] = {
        "label": label,
        "steps": nfe,
        "iteration": [],
        "heldout": [],
        "seconds": 0.0,
    }
    if checkpoint.exists() and load_checkpoint(checkpoint, "meta")[1]["meta"] == key:
        process.resume(checkpoint, key)
        curve = load_json(home / CURVE)
    before, started = curve["seconds"], time.process_time()
    for state in process.run():
        yield state
        if state.heldout is not None:
            curve["iteration"].append(state.step)
            curve["heldout"].append(state.heldout)
        if state.heldout is not None or state.step == state.iterations:
            curve["seconds"] = before + time.process_time() - started
            save_json(home / CURVE, curve)
            process.save(checkpoint, key)
    return before + time.process_time() - started

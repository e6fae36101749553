"""Mutated files of every kind that is read again: each is refused in one sentence or changes
nothing.

    python tests/fuzzing.py --count 20000

A mutant is written in place of the sound file and loaded. *Refused* is a ValueError or OSError of
one line. *Same* means that it loads and nothing differs. *Forged* is a changed content under a
checksum that was made to fit; it may load, since a checksum is no signature, but it must load or be
refused like any other. Everything else is a defect: other exceptions, more than five seconds, more
than 1 GiB of memory, and a change that is noticed by nobody.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from indis import INDIS, Recipe, TeachConfig, artifact, heuristic, load_endpoints, teach_folder
from indis.bench import budget
from indis.bench.cells import read_cell
from indis.bench.error_predictor import ErrorPredictor
from indis.bench.stages import read_curve
from indis.losses import squared_distance
from indis.methods import GOD, EveryN
from indis.sealed import save_record, seal
from indis.storage import checksum, load_tensors, save_tensors
from small_cases import toy, toy_pairs

SEAL = re.compile(rb'sha256\\?": \\?"([0-9a-f]{64})')
SECONDS, MEMORY = 5, 1 << 30
RECIPE = Recipe(iterations=6, batch=16, holdout=16, validate_every=2)
VALUES = [-1, 0, 1, 2**31, 10**18, 10**40, 1e300, -0.0, "", "x" * 5000, None, True, [], {}, [[]]]
VALUES += ["../../etc/passwd", [10**9], {"type": "Exec"}, 0.5, "0" * 64, [1, None]]


@dataclass(frozen=True)
class Kind:
    """Sound files of one kind.

    Args:
        name: what they are.
        folder: where they are.
        load: reads them and returns what was read, for comparison.
    """

    name: str
    folder: Path
    load: Callable[[], object]


def drawn(value) -> object:
    """Return a sampler's numbers and its samples of two seeds."""
    sampler = value.sampler if isinstance(value, budget.BudgetSampler) else value
    with torch.no_grad():
        samples = value(toy(), toy_pairs().noise[:2])
    state = {name: part.tolist() for name, part in sampler.policy.state_dict().items()}
    return [repr(sampler.solver), sampler.policy.describe(), state, samples.tolist()]


def endpoints_of(folder: Path) -> object:
    """Return all that a folder of end points holds."""
    data, meta = load_endpoints(folder)
    return [data.seeds.tolist(), data.target.tolist(), meta]


def resumed(method, path: Path) -> object:
    """Return the state of a fit that goes on from a checkpoint, one iteration later."""
    process = method.tuning(toy(), toy_pairs(), squared_distance)
    process.resume(path)
    step = next(process.run(), None)
    tensors, numbers = process._state()
    return [repr(step), numbers, {name: value.tolist() for name, value in tensors.items()}]


def corpus(folder: Path) -> list[Kind]:
    """Write sound files of every kind below a folder."""
    kinds = []
    phi = INDIS(3, "euler", "uniform", width=8, depth=1, recipe=RECIPE)
    shared = GOD(3, "euler", "uniform", recipe=RECIPE)
    for name, method in (("god", shared), ("phi", phi)):
        process = method.tuning(toy(), toy_pairs(), squared_distance)
        run = process.run()
        for _ in range(3):
            next(run)
        place = folder / f"checkpoint-{name}" / "checkpoint.safetensors"
        process.save(place)
        kinds.append(Kind(place.parent.name, place.parent, partial(resumed, method, place)))
        run.close()
        home = folder / f"artifact-{name}"
        artifact.save(process.sampler, home, {"model": "toy"})
        kinds.append(Kind(home.name, home, lambda home=home: drawn(artifact.load(home))))
    every = EveryN(3, "euler", "uniform", fewest=2, width=8, depth=1).untrained(toy())
    home = folder / "budget"
    predictor = ErrorPredictor((2, 3), shape=(2,), width=8, depth=1).requires_grad_(False)
    budget.save(budget.BudgetSampler(every, predictor, 0.1, 2.5), home)
    kinds.append(Kind("budget", home, lambda: drawn(budget.load(folder / "budget"))))
    teacher = heuristic(toy(), solver="euler", grid="uniform", steps=4)
    config = TeachConfig(count=12, shard=6)
    list(teach_folder(config, toy(), teacher, folder / "endpoints", provenance={"model": "toy"}))
    kinds.append(
        Kind("endpoints", folder / "endpoints", lambda: endpoints_of(folder / "endpoints"))
    )
    cell = folder / "cell" / "a.json"
    save_record(cell, 1, {"identity": "a", "row": {"method": "god", "nfe": 3, "loss": 0.25}})
    kinds.append(Kind("cell", cell.parent, lambda: read_cell(cell, "method", "nfe")))
    curve = {"label": "a", "steps": 3, "iteration": [1, 2], "heldout": [0.5, 0.25], "seconds": 1.5}
    save_record(folder / "curve" / "curve.json", 1, curve)
    kinds.append(Kind("curve", folder / "curve", lambda: read_curve(folder / "curve")))
    return kinds


# --- mutations


def of_bytes(raw: bytes, draw: random.Random) -> bytes:
    """Return other bytes: flipped, cut, repeated, overwritten, or another header length."""
    place, size = draw.randrange(len(raw)), draw.randrange(1, 64)
    choice = draw.randrange(9)
    if choice < 3:  # a bit
        flipped = raw[place] ^ (1 << draw.randrange(8))
        return raw[:place] + bytes([flipped]) + raw[place + 1 :]
    if choice == 3:  # a digit
        digits = [i for i, byte in enumerate(raw) if 48 <= byte <= 57]
        place = draw.choice(digits)
        return raw[:place] + bytes([48 + (raw[place] - 47) % 10]) + raw[place + 1 :]
    if choice == 4:
        return raw[:place]
    if choice == 5:
        return raw + draw.randbytes(size)
    if choice == 6:
        return raw[:place] + raw[place : place + size] * 2 + raw[place + size :]
    if choice == 7:
        return raw[:place] + draw.randbytes(size) + raw[place + size :]
    return draw.choice([0, 2**16, 2**40, 2**63]).to_bytes(8, "little") + raw[8:]


def places(value: object, path: tuple = ()) -> Iterator[tuple]:
    """Yield the path of every value inside JSON."""
    inner = value.items() if isinstance(value, dict) else enumerate(value)
    for name, part in inner:
        yield (*path, name)
        if isinstance(part, dict | list):
            yield from places(part, (*path, name))


def of_json(raw: bytes, draw: random.Random) -> bytes:
    """Return other JSON: without a field, with another value or field, or nested deeply."""
    record = json.loads(raw)
    *path, name = draw.choice([p for p in places(record) if p[0] != "sha256"])
    inside = record
    for part in path:
        inside = inside[part]
    choice = draw.randrange(8)
    if choice < 3:
        del inside[name]
    elif choice < 6:
        old = inside[name]
        grown = [old * 1000, -old] if type(old) in (int, float) else []
        inside[name] = draw.choice(VALUES + grown)
    elif choice == 6 and isinstance(inside, dict):
        inside["unknown"] = draw.choice(VALUES)
    else:
        inside[name] = "DEEP"
    text = json.dumps(record, indent=2) + "\n"
    return text.replace('"DEEP"', "[" * 3000 + "]" * 3000).encode()


def of_tensors(path: Path, draw: random.Random) -> bytes:
    """Return another safetensors file: without a tensor, or with one of other numbers or shape."""
    tensors, meta = load_tensors(path)
    name = draw.choice(sorted(tensors))
    value, choice = tensors.pop(name), draw.randrange(6)
    if choice == 1:
        tensors[name] = value.flatten()[:1]
    elif choice == 2:
        tensors[name] = value.double() * draw.choice([float("nan"), float("inf"), 1e30, -1])
    elif choice == 3:
        tensors[name] = value.half()
    elif choice == 4:
        tensors[name + "x"] = value
    elif choice == 5:
        tensors[name] = torch.zeros(0, *value.shape)
    if isinstance(meta, dict) and draw.random() < 0.5:
        meta[draw.choice(sorted(set(meta) - {"format", "sha256"}))] = draw.choice(VALUES)
    save_tensors(path, tensors, meta)
    return path.read_bytes()


def resealed(path: Path) -> None:
    """Make the checksum inside a mutant fit."""
    raw = path.read_bytes()
    if (found := SEAL.search(raw)) is not None:
        path.write_bytes(raw[: found.start(1)] + b"0" * 64 + raw[found.end(1) :])
        seal(path)


def rebound(folder: Path, name: str, old: str) -> None:
    """Put a file's new checksum where the records of its folder have the old one."""
    new = checksum(folder / name)
    for record in folder.glob("*.json"):
        raw = record.read_bytes()
        if old.encode() in raw:
            record.write_bytes(raw.replace(old.encode(), new.encode()))
            before = checksum(record)
            resealed(record)
            if before in "".join(p.read_text() for p in folder.glob("*.json")):
                rebound(folder, record.name, before)


# --- judging


class Hang(BaseException):
    """A mutant took too long."""


def alarm(number: int, frame: object) -> None:
    """Stop a mutant that hangs."""
    raise Hang


def judge(kind: Kind, sound: str, forged: bool) -> tuple[str, str]:
    """Return the outcome of loading a mutant, and what is wrong."""
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        found = repr(kind.load())
    except (ValueError, OSError, FloatingPointError) as error:
        text = str(error)
        if "\n" in text.strip() or len(text) > 1500:
            return "DEFECT", f"no single sentence: {text[:200]!r}"
        return "refused", ""
    except Hang:
        return "DEFECT", f"more than {SECONDS} s"
    except BaseException:
        return "DEFECT", traceback.format_exc(limit=-4)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    if found == sound:
        return "same", ""
    return ("forged", "") if forged else ("DEFECT", "a silent change")


def fuzz(count: int, seed: int, folder: Path) -> tuple[Counter, list[str]]:
    """Load mutants.

    Args:
        count: how many.
        seed: of the mutations.
        folder: an empty one.

    Returns:
        How many of each kind had each outcome, and the defects.
    """
    kinds, draw = corpus(folder), random.Random(seed)
    sounds = {kind.name: repr(kind.load()) for kind in kinds}
    outcomes: Counter = Counter()
    defects: list[str] = []
    before = signal.signal(signal.SIGALRM, alarm)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        for number in range(count):
            kind = kinds[number % len(kinds)]
            whole = {p: p.read_bytes() for p in sorted(kind.folder.iterdir())}
            path = draw.choice(list(whole))
            old = checksum(path)
            if draw.random() < 0.4:
                path.write_bytes(of_bytes(whole[path], draw))
            elif path.suffix == ".json":
                path.write_bytes(of_json(whole[path], draw))
            else:
                path.write_bytes(of_tensors(path, draw))
            forged = draw.random() < 0.5
            if forged:
                try:
                    resealed(path)
                    rebound(kind.folder, path.name, old)
                except (ValueError, RecursionError, AssertionError):
                    pass  # too damaged to be given a checksum
            outcome, why = judge(kind, sounds[kind.name], forged)
            now = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            if (now - peak) * 1024 > MEMORY:
                outcome, why = "DEFECT", f"{(now - peak) >> 10} MiB of memory"
                peak = now
            outcomes[kind.name, outcome] += 1
            if outcome == "DEFECT":
                defects.append(f"mutant {number} of {kind.name}, {path.name}: {why}")
            for name, content in whole.items():
                name.write_bytes(content)
    finally:
        signal.signal(signal.SIGALRM, before)
    return outcomes, defects


def main() -> int:
    """Fuzz from the command line; the exit code is 1 if there was a defect."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        outcomes, defects = fuzz(options.count, options.seed, Path(folder))
    columns = ("refused", "same", "forged", "DEFECT")
    print(f"{'kind':20}" + "".join(f"{name:>10}" for name in columns))
    for kind in sorted({name for name, _ in outcomes}):
        print(f"{kind:20}" + "".join(f"{outcomes[kind, name]:>10}" for name in columns))
    print(f"{options.count} mutants in {time.monotonic() - begun:.0f} s, {len(defects)} defects")
    print("\n".join(defects[:20]))
    return bool(defects)


if __name__ == "__main__":
    sys.exit(main())

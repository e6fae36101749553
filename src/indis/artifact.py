"""Artifacts: a fitted sampler as a folder that anyone can load, and nobody's code runs on loading.

    config.json         format version, solver, policy with its hyper-parameters, schedule, provenance
    policy.safetensors  what was learned

``save`` then ``load`` gives the same bits. This is the one module where stored names become
classes.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from torch import Tensor

from indis.noise import SCHEDULES
from indis.policies import POLICIES, Policy
from indis.sampler import Sampler
from indis.solvers import SOLVERS
from indis.storage import (
    checksum,
    describe,
    load_json,
    load_tensors,
    rebuild,
    save_json,
    save_tensors,
)

FORMAT = 2  # 1 had closed loops fitted to another use of shifted answers
BUDGET = (
    "budget.json"  # in a folder of `indis.bench.budget`, whose sampler is only a part of what it is
)

SHIPPED = Path(__file__).parent / "shipped"


def shipped(name: str) -> Path:
    """The folder of an artifact that comes with the package, for example ``fashion-nfe3``.

    Raises:
        FileNotFoundError: if there is none of that name.
    """
    if name not in shipped_names():
        raise FileNotFoundError(
            f"artifact must be a folder or one of {', '.join(shipped_names())}, got {name!r}"
        )
    return SHIPPED / name


def find(name: Path | str) -> Path:
    """The folder of that name, or else of the artifact that ships under it.

    Raises:
        FileNotFoundError: if there is neither.
    """
    return Path(name) if Path(name).exists() else shipped(str(name))


def shipped_names() -> list[str]:
    """The artifacts that come with the package."""
    return sorted(path.parent.name for path in SHIPPED.glob("*/config.json"))


def save(sampler: Sampler, folder: Path | str, provenance: dict[str, Any] | None = None) -> None:
    """Write a sampler; ``provenance`` (JSON) records how it came about: model, data, losses, seeds.

    A budget that the folder held before goes: it was for another sampler.

    Raises:
        TypeError: if the policy, its schedule or the solver is of a kind that is not stored.
        ValueError: if ``provenance`` is not JSON; the folder is then as it was.
    """
    write(sampler, folder, provenance)
    (Path(folder) / BUDGET).unlink(missing_ok=True)


def write(sampler: Sampler, folder: Path | str, provenance: dict[str, Any] | None = None) -> None:
    """:func:`save`, which leaves the files of a budget as they are.

    The weights are written before the config, which has their checksum: a folder with a config is
    complete, and one that was interrupted while it was overwritten is told from a good one.
    """
    folder = Path(folder)
    policy = sampler.policy.frozen()
    # All may refuse, so before anything is written.
    _require_known("policy", policy, POLICIES.values())
    _require_known("solver", sampler.solver, SOLVERS.values())
    if (schedule := getattr(policy, "schedule", None)) is not None:
        _require_known("schedule", schedule, SCHEDULES)
    described, recorded = (
        {"type": type(policy).__name__, **policy.describe()},
        _json(provenance or {}),
    )
    weights = folder / "policy.safetensors"
    save_tensors(weights, policy.state_dict())
    config = {
        "format": FORMAT,
        "solver": describe(sampler.solver),
        "analytic_first": sampler.analytic_first,
        "nfe": sampler.nfe,
        "policy": described,
        "weights": checksum(weights),
        "provenance": recorded,
    }
    save_json(folder / "config.json", config)


def load(folder: Path | str) -> Sampler:
    """Read a sampler from a folder, or one that comes with the package by its name.

    Raises:
        FileNotFoundError: if the folder is not an artifact.
        ValueError: if it is damaged, of another format, names something unknown, or holds a budget.
    """
    folder = find(folder)
    if (folder / BUDGET).exists():
        raise ValueError(
            f"{folder} holds a budget, each sample its own number of steps: use indis.bench.budget.load"
        )
    return read(folder)


def read(folder: Path | str) -> Sampler:
    """:func:`load`, of a budget the sampler alone, at the number of steps that it was saved with.

    Raises:
        FileNotFoundError: if the folder is not an artifact.
        ValueError: if it is damaged, of another format, or names something unknown.
    """
    folder = find(folder)
    config = load_config(folder)
    weights = folder / "policy.safetensors"
    tensors, _ = load_tensors(weights)
    if config.get("weights") != checksum(weights):
        raise ValueError(
            f"{folder} is damaged: policy.safetensors is not the one that config.json was written with"
        )
    try:
        solver = rebuild(config["solver"], SOLVERS.values())
        policy = _build_policy(config["policy"], tensors)
        analytic_first = config["analytic_first"]
        if not isinstance(analytic_first, bool):
            raise TypeError(f"analytic_first must be true or false, got {analytic_first!r}")
        return Sampler(policy.eval().requires_grad_(False), solver, analytic_first)
    except (KeyError, TypeError, RuntimeError) as error:
        raise ValueError(f"{folder} is not a complete artifact: {reason(error)}") from None


def seen_seeds(seeds: Tensor, *before: Path | str) -> list[dict[str, int]]:
    """Ranges of the seeds of a fit, for its provenance as ``fitted_on``: its own, and those of what
    it began at.
    """
    first, last = int(seeds.min()), int(seeds.max())
    return [span for name in before for span in _recorded(name)] + [
        {"first_seed": first, "count": last - first + 1}
    ]


def check_unseen(name: Path | str, seeds: Tensor) -> None:
    """Pass if an artifact was fitted on none of these held-out seeds, or does not record on which.

    Raises:
        ValueError: if it was.
    """
    for span in _recorded(name):
        first, last = span["first_seed"], span["first_seed"] + span["count"] - 1
        seen = int(((seeds >= first) & (seeds <= last)).sum())
        if seen:
            fitted = f"{name} was fitted on {first} ... {last}"
            raise ValueError(
                f"heldout must hold seeds that no fit has seen, but {fitted}: {seen} of {len(seeds)}"
            )


def made_for(name: Path | str) -> str | None:
    """The model that an artifact was fitted to, if it records one; those that scripts wrote need
    not.
    """
    match load_config(find(name)).get("provenance"):
        case {"model": str(model)}:
            return model
    return None


def _recorded(name: Path | str) -> list[dict[str, int]]:
    """What :func:`seen_seeds` said; nothing of artifacts that scripts or earlier versions wrote."""
    match load_config(find(name)).get("provenance"):
        case {"fitted_on": list(spans)}:
            return [span for span in spans if _is_range(span)]
    return []


def _is_range(span: Any) -> bool:
    return isinstance(span, dict) and all(
        isinstance(span.get(key), int) for key in ("first_seed", "count")
    )


def load_config(folder: Path) -> dict[str, Any]:
    """The ``config.json`` of an artifact.

    Raises:
        FileNotFoundError: if it is missing.
        ValueError: if it is damaged or of another format version.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise FileNotFoundError(f"{folder} is not an artifact: config.json is missing")
    config = load_json(path)
    version = config.get("format") if isinstance(config, dict) else None
    if version != FORMAT:
        raise ValueError(f"{path} must have format {FORMAT}, got {version!r}")
    return config


def _json(provenance: dict[str, Any]) -> dict[str, Any]:
    """Itself, if it can be written."""
    try:
        json.dumps(provenance, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"provenance must be JSON, got something else: {error}") from None
    return provenance


def _require_known(name: str, value: object, known: Iterable[type]) -> None:
    """Only what a name stands for can be read again."""
    if type(value) not in (classes := list(known)):
        names = ", ".join(c.__name__ for c in classes)
        raise TypeError(f"{name} must be one of {names} to be saved, got {type(value).__name__}")


def reason(error: Exception) -> str:
    """The first line; a KeyError's text is the key alone."""
    return f"{error} is missing" if isinstance(error, KeyError) else str(error).splitlines()[0]


def _build_policy(config: dict[str, Any], tensors: dict[str, Any]) -> Policy:
    kind = config["type"]
    if kind not in POLICIES:
        raise ValueError(f"policy type must be one of {', '.join(POLICIES)}, got {kind!r}")
    return POLICIES[kind].rebuild(config, tensors)

"""Artifacts: a fitted sampler as a folder that anyone can load; loading runs nobody's code.

    config.json         format, solver, policy with hyper-parameters and schedule, provenance
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

from indis.methods import POLICIES
from indis.noise import SCHEDULES
from indis.policies import Policy
from indis.sampler import Sampler
from indis.sealed import SizedBy, load_record, save_record
from indis.solvers import SOLVERS
from indis.storage import (
    DamagedFileError,
    checksum,
    describe,
    load_json,
    load_tensors,
    malformed,
    rebuild,
    save_tensors,
)

FORMAT = 3
FILES = ("config.json", "policy.safetensors")  # of an artifact
# In a folder of `indis.bench.budget`, whose sampler is only a part of what it is.
BUDGET = "budget.json"

SHIPPED = Path(__file__).parent / "shipped"


def find(name: Path | str) -> Path:
    """Return the folder of that name, or else of the artifact that ships under it.

    Raises:
        FileNotFoundError: if there is neither.
    """
    if Path(name).exists():
        return Path(name)
    if str(name) not in shipped_names():
        raise FileNotFoundError(
            f"artifact must be a folder or one of {', '.join(shipped_names())}, got {str(name)!r}"
        )
    return SHIPPED / name


def shipped_names() -> list[str]:
    """Return the names of the artifacts that come with the package, such as fashion-nfe3."""
    return sorted(path.parent.name for path in SHIPPED.glob("*/config.json"))


def save(sampler: Sampler, folder: Path | str, provenance: dict[str, Any] | None = None) -> None:
    """Write a sampler. A budget that the folder held is deleted: it was for another sampler.

    Args:
        sampler: what to write.
        folder: new, or of an artifact that is replaced.
        provenance: JSON that records how it came about: model, data, losses, seeds.

    Raises:
        TypeError: if the policy, its schedule or the solver is of a kind that is not stored.
        ValueError: if ``provenance`` is not JSON; the folder is then as it was.
    """
    write(sampler, folder, provenance)
    (Path(folder) / BUDGET).unlink(missing_ok=True)


def write(sampler: Sampler, folder: Path | str, provenance: dict[str, Any] | None = None) -> None:
    """Write a sampler as :func:`save` does, but leave the files of a budget as they are.

    The weights are written before the config, which has their checksum. So a folder with a config
    is complete, and one whose overwriting was interrupted is noticed.
    """
    folder = Path(folder)
    policy = sampler.policy.frozen()
    # All may refuse, so before anything is written.
    _require_known("policy", policy, POLICIES.values())
    _require_known("solver", sampler.solver, SOLVERS.values())
    if (schedule := getattr(policy, "schedule", None)) is not None:
        _require_known("schedule", schedule, SCHEDULES)
    described = {"type": type(policy).__name__, **policy.describe()}
    recorded = provenance or {}
    try:
        json.dumps(recorded, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"provenance must be JSON, got something else: {error}") from None
    weights = folder / "policy.safetensors"
    save_tensors(weights, policy.state_dict())
    config = {
        "solver": describe(sampler.solver),
        "analytic_first": sampler.analytic_first,
        "nfe": sampler.nfe,
        "policy": described,
        "weights": checksum(weights),
        "provenance": recorded,
    }
    save_record(folder / "config.json", FORMAT, config)


def load(folder: Path | str) -> Sampler:
    """Read a sampler from a folder, or one that comes with the package by its name.

    Raises:
        FileNotFoundError: if the folder is not an artifact.
        ValueError: if it is damaged, incomplete, of another format, names something unknown, or
            holds a budget.
    """
    folder = find(folder)
    if (folder / BUDGET).exists():
        raise ValueError(
            f"{folder} holds a budget, each sample its own number of steps: "
            "use indis.bench.budget.load"
        )
    return read(folder)


def read(folder: Path | str) -> Sampler:
    """Read a sampler as :func:`load` does, from a folder with a budget too.

    Raises:
        FileNotFoundError: if the folder is not an artifact.
        ValueError: if it is damaged, incomplete, of another format, or names something unknown.
    """
    folder = find(folder)
    config = load_config(folder)
    tensors = checked_tensors(folder, config)
    with malformed(folder, "artifact"):
        solver = rebuild(config["solver"], SOLVERS.values())
        policy = _build_policy(config["policy"], tensors)
        analytic_first = config["analytic_first"]
        if not isinstance(analytic_first, bool):
            raise TypeError(f"analytic_first must be true or false, got {analytic_first!r}")
        sampler = Sampler(policy.eval().requires_grad_(False), solver, analytic_first)
        if config["nfe"] != sampler.nfe:
            raise ValueError(f"nfe must be {sampler.nfe}, got {config['nfe']!r}")
    return sampler


def checked_tensors(folder: Path, config: dict[str, Any]) -> dict[str, Tensor]:
    """Return the tensors of an artifact.

    Raises:
        FileNotFoundError: if the file is missing.
        ValueError: if it is damaged, or not the one that the config was written with.
    """
    weights = folder / "policy.safetensors"
    tensors, _ = load_tensors(weights)
    if config.get("weights") != checksum(weights):
        raise DamagedFileError(
            folder,
            "is damaged: policy.safetensors is not the one that config.json was written with",
        )
    for name, value in tensors.items():
        if value.is_floating_point() and not bool(value.isfinite().all()):
            raise DamagedFileError(weights, f"is damaged: {name} is not finite")
    return tensors


def seen_seeds(seeds: Tensor, *before: Path | str) -> list[dict[str, int]]:
    """Return the ranges of seeds of a fit, for its provenance as ``fitted_on``.

    Args:
        seeds: of the end points of the fit.
        before: artifacts that it began at.
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
            raise ValueError(
                f"heldout must hold seeds that no fit has seen, but {name} was fitted on {first} "
                f"... {last}: {seen} of {len(seeds)}"
            )


def made_for(name: Path | str) -> str | None:
    """Return the model that an artifact was fitted to, if it records one."""
    match load_config(find(name)).get("provenance"):
        case {"model": str(model)}:
            return model
    return None


def _recorded(name: Path | str) -> list[dict[str, int]]:
    """What :func:`seen_seeds` returned for an artifact; nothing for one that scripts wrote."""
    match load_config(find(name)).get("provenance"):
        case {"fitted_on": list(spans)}:
            return [
                span
                for span in spans
                if isinstance(span, dict)
                and all(isinstance(span.get(key), int) for key in ("first_seed", "count"))
            ]
    return []


def load_config(folder: Path, *, version: int = FORMAT) -> dict[str, Any]:
    """Return the ``config.json`` of an artifact of a format.

    Raises:
        FileNotFoundError: if it is missing.
        ValueError: if it is damaged or of another format.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise FileNotFoundError(f"{folder} is not an artifact: config.json is missing")
    if version == FORMAT:
        if _unsealed(path) == 2:
            raise DamagedFileError(
                path, f"has format 2, which is read no more: run `indis upgrade {folder}`"
            )
        return load_record(path, FORMAT)
    if (found := _unsealed(path)) != version:
        raise DamagedFileError(path, f"must have format {version}, got {found!r}")
    return load_json(path)


def _unsealed(path: Path) -> Any:
    """Return the format that a config claims, before its checksum is looked at."""
    config = load_json(path)
    return config.get("format") if isinstance(config, dict) else None


def upgrade(folder: Path | str) -> None:
    """Convert an artifact of format 2 in place. Learned numbers keep their bits.

    Raises:
        FileNotFoundError: if the folder is not an artifact.
        ValueError: if it is damaged, of another format, or of a kind that exists no more.
    """
    from indis.format2 import converted  # for one release

    folder = Path(folder)
    if (folder / BUDGET).exists():
        raise ValueError(f"{folder} holds a budget, which is not converted: fit it again")
    config = load_config(folder, version=2)
    with malformed(folder, "artifact"):
        policy, tensors, solver = converted(config, checked_tensors(folder, config))
        sampler = Sampler(_build_policy(policy, tensors), solver, config["analytic_first"])
    provenance = config.get("provenance", {})
    if isinstance(made := provenance.get("config"), dict) and "fit" in made:
        provenance["config"] = {("recipe" if k == "fit" else k): v for k, v in made.items()}
    write(sampler, folder, provenance)


def _require_known(name: str, value: object, known: Iterable[type]) -> None:
    """Only what a name stands for can be read again."""
    if type(value) not in (classes := list(known)):
        names = ", ".join(c.__name__ for c in classes)
        raise TypeError(f"{name} must be one of {names} to be saved, got {type(value).__name__}")


def _build_policy(config: dict[str, Any], tensors: dict[str, Tensor]) -> Policy:
    kind = config["type"]
    if kind not in POLICIES:
        raise ValueError(f"policy type must be one of {', '.join(POLICIES)}, got {kind!r}")
    with SizedBy(tensors):
        return POLICIES[kind].rebuild(config, tensors)

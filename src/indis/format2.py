"""Conversion of artifacts of format 2, for one release."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from torch import Tensor

from indis.logits import Bounds
from indis.solvers import SOLVERS, Solver

Tensors = dict[str, Tensor]
WITH_PRIOR = ("LinearVP", "ScaledLinearVP", "DiscreteVP", "TableVP")
# Names of parameters that were in other places.
MOVED = (
    ("reader.trunk.", "encoder.trunk."),
    ("reader.condition.", "encoder.condition."),
    ("trunk.", "encoder.trunk."),
    ("mix.", "encoder.mix."),
    ("places.", "corrector."),
)


def converted(
    config: Mapping[str, Any], tensors: Tensors
) -> tuple[dict[str, Any], Tensors, Solver]:
    """Return an artifact's policy as format 3 describes it, its tensors, and its solver.

    Raises:
        KeyError: if an entry is missing.
        ValueError: if it was fitted with something that exists no more.
    """
    described = dict(config["solver"])
    solver: Solver = {c.__name__: c for c in SOLVERS.values()}[described.pop("type")](**described)
    old, kind = dict(config["policy"]), config["policy"]["type"]
    if "schedule" in old:
        old["schedule"] = _with_prior(old["schedule"])
    if "track" in old.get("bounds", {}):
        bounds = dict(old["bounds"])
        if bounds.pop("track") is not None:
            raise ValueError("policy tracks time, which only DyWeight does now: fit it again")
        old["bounds"] = asdict(Bounds(**bounds))
    if kind == "Fixed":
        return old | {"to_zero": False}, tensors, solver
    if kind == "OneShot":
        del old["order"]
        return old, _moved({k: v for k, v in tensors.items() if k != "scale"}), solver
    if kind == "MidpointPredictor":
        network = old["network"] | {"analytic_first": config["analytic_first"]}
        return old | {"network": network}, tensors, solver
    if kind == "MidpointTable":
        return old, tensors, solver
    new, of_steps = _learned(old, tensors)
    return new, of_steps | _moved(tensors), solver


def _with_prior(schedule: dict[str, Any]) -> dict[str, Any]:
    """The description of a schedule; VP schedules had no choice of a prior."""
    return {**schedule, "prior": "marginal"} if schedule["type"] in WITH_PRIOR else schedule


def _moved(tensors: Tensors) -> Tensors:
    """What is left of a state, under its present names."""
    found = {}
    for name, value in tensors.items():
        for before, after in MOVED:
            if name.startswith(before):
                name = after + name.removeprefix(before)
                break
        found[name] = value
    return found


def _learned(old: dict[str, Any], tensors: Tensors) -> tuple[dict[str, Any], Tensors]:
    """The description of a learned policy, and its logits, which are taken out of ``tensors``."""
    kind = old["type"]
    network: dict[str, Any] = old.get("network") or {}
    if kind == "AnySteps":
        counts, order = old["counts"], network.pop("order")
        made = {
            n: {k: tensors.pop(f"shared.{n}.{k}") for k in ("base", "scale", "free")}
            for n in counts
        }
        for n in counts:
            made[n]["head"] = tensors.pop(f"heads.{n}.weight")
    else:
        order, base, scale = old["order"], tensors.pop("base"), tensors.pop("scale")
        counts = [scale.shape[2]]
        own = {"base": base, "scale": scale}
        if kind in ("Global", "PerSample"):
            own["free"] = tensors.pop("free")
        else:
            own["head"] = tensors.pop("head.weight")
            own["free"] = tensors.pop("head.bias").reshape(scale.shape)
        if "place.weight" in tensors:
            own["position.weight"] = tensors.pop("place.weight")
        made = {counts[0]: own}
    answers = kind in ("ClosedLoop", "LocalLoop")
    local = kind == "LocalLoop"
    new = {
        "type": "LearnedPolicy",
        "schedule": old["schedule"],
        "bounds": old["bounds"],
        "order": order if old["bounds"]["weights"] > 0 else 0,
        "counts": counts,
        "steps": old.get("steps", counts[-1]),
        "samples": len(made[counts[0]]["free"]),
        "to_zero": False,
        "reads": "answers" if answers else "noise" if network else "nothing",
        "network": network or None,
        "native": old["native"] if answers else None,
        "replan": old["look"] if answers else "every",
        "picture": {"kind": old["local"], "width": old["local_width"]} if local else None,
    }
    names = {"free": "table"}
    states = {
        f"by_steps.{n}.{names.get(name, name)}": value
        for n, own in made.items()
        for name, value in own.items()
    }
    return new, states

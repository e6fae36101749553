"""Artifacts: a fitted sampler as a folder that anyone can load, and nobody's code runs on loading.

    config.json         format version, solver, policy with its hyper-parameters, schedule, provenance
    policy.safetensors  what was learned

``save`` then ``load`` gives the same bits. This is the one module where stored names become classes.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from indis import noise
from indis.discretization import Bounds, Discretization
from indis.noise import NoiseSchedule
from indis.policies import Fixed, Global, Instance, PerSample, Policy
from indis.policies.policy import LogitPolicy
from indis.sampler import Sampler
from indis.solvers import SOLVERS
from indis.storage import load_json, load_tensors, save_json, save_tensors

FORMAT = 1
SCHEDULES = (noise.EDM, noise.RectifiedFlow, noise.LinearVP, noise.ScaledLinearVP, noise.DiscreteVP)


SHIPPED = Path(__file__).parent / "shipped"


def shipped(name: str) -> Path:
    """The folder of an artifact that comes with the package, for example ``fashion-nfe3``.

    Raises:
        FileNotFoundError: if there is none of that name.
    """
    names = sorted(path.parent.name for path in SHIPPED.glob("*/config.json"))
    if name not in names:
        raise FileNotFoundError(f"artifact must be a folder or one of {', '.join(names)}, got {name!r}")
    return SHIPPED / name


def save(sampler: Sampler, folder: Path | str, provenance: dict[str, Any] | None = None) -> None:
    """Write a sampler; ``provenance`` (JSON) records how it came about: model, data, losses, seeds.

    The weights are written before the config, so a folder with a config is complete.
    """
    folder = Path(folder)
    policy_config, tensors = _describe_policy(sampler.policy)
    config = {
        "format": FORMAT,
        "solver": describe(sampler.solver),
        "analytic_first": sampler.analytic_first,
        "nfe": sampler.nfe,
        "policy": policy_config,
        "provenance": provenance or {},
    }
    save_tensors(folder / "policy.safetensors", tensors)
    save_json(folder / "config.json", config)


def load(folder: Path | str) -> Sampler:
    """Read a sampler.

    Raises:
        FileNotFoundError: if the folder is not an artifact.
        ValueError: if it is damaged, of another format, or names something unknown.
    """
    folder = Path(folder)
    config = load_config(folder)
    tensors, _ = load_tensors(folder / "policy.safetensors")
    try:
        solver = _build(config["solver"], {c.__name__: c for c in SOLVERS.values()})
        policy = _build_policy(config["policy"], tensors)
        return Sampler(policy.eval().requires_grad_(False), solver, config["analytic_first"])
    except (KeyError, TypeError, RuntimeError) as error:
        raise ValueError(f"{folder} is not a complete artifact: {str(error).splitlines()[0]}") from None


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


def describe(value: Any) -> dict[str, Any]:
    """A frozen dataclass as JSON: its class name and fields."""
    return {"type": type(value).__name__, **asdict(value)}


def _build(config: dict[str, Any], classes: dict[str, type]) -> Any:
    fields = dict(config)
    name = fields.pop("type")
    if name not in classes:
        raise ValueError(f"type must be one of {', '.join(classes)}, got {name!r}")
    return classes[name](**fields)


def _describe_policy(policy: Policy) -> tuple[dict[str, Any], dict[str, Any]]:
    if isinstance(policy, Fixed):
        plan = policy.plan
        tensors = {"tau": plan.tau, "dtau": plan.dtau, "gamma": plan.gamma}
        return {"type": "Fixed"}, tensors if plan.weights is None else tensors | {"weights": plan.weights}
    if not isinstance(policy, LogitPolicy):
        raise TypeError(f"policy must be Fixed, Global, PerSample or Instance to be saved, got {type(policy).__name__}")
    config = {
        "type": type(policy).__name__,
        "schedule": describe(policy.schedule),
        "bounds": asdict(policy.bounds),
        "order": policy.order,
    }
    if isinstance(policy, Instance):
        names = ("shape", "condition_dim", "width", "depth")
        config["network"] = {name: getattr(policy, name) for name in names}
    return config, policy.state_dict()


def _build_policy(config: dict[str, Any], tensors: dict[str, Any]) -> Policy:
    kind = config["type"]
    if kind == "Fixed":
        return Fixed(Discretization(**tensors))
    schedule: NoiseSchedule = _build(config["schedule"], {c.__name__: c for c in SCHEDULES})
    shared = (tensors["base"], schedule, Bounds(**config["bounds"]))
    if kind == "Global":
        policy: Policy = Global(*shared, config["order"])
    elif kind == "PerSample":
        policy = PerSample(len(tensors["free"]), *shared, config["order"])
    elif kind == "Instance":
        network = config["network"]
        policy = Instance(*shared, order=config["order"], **network | {"shape": tuple(network["shape"])})
    else:
        raise ValueError(f"policy type must be Fixed, Global, PerSample or Instance, got {kind!r}")
    policy.load_state_dict(tensors)
    return policy

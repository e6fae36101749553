"""A sampler in a pipeline that stays as it is: its scheduler is exchanged, and it is watched."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Self

import diffusers
import torch
from torch import Tensor

from indis import artifact as artifacts
from indis.diffusers.described import warn_of_others, warn_of_size
from indis.diffusers.families import Family, family_of
from indis.diffusers.process import process_of
from indis.diffusers.run import Layout, Run, known_plan
from indis.diffusers.scheduler import ALONE, CALL, IndisScheduler
from indis.diffusers.watch import watch
from indis.sampler import Sampler

Artifact = Sampler | str | Path
# These caches compare times of a whole batch in Python.
CACHES = ("PyramidAttentionBroadcastConfig", "FasterCacheConfig")


def enable(
    pipe: Any,
    artifact: Artifact | Mapping[int, Artifact] | None = None,
    *,
    family: Family | None = None,
) -> Enabled:
    """Let a diffusers pipeline sample by a sampler of INDIS.

    The pipeline is called as before, with ``num_inference_steps`` the network calls of the sampler.

    Args:
        pipe: The pipeline. Its scheduler is exchanged; ``encode_prompt`` and ``prepare_latents``
            are watched for what a policy reads.
        artifact: A sampler, the folder or name of an artifact, or one of them for each number of
            network calls. None: what the pipeline was saved with. A policy is moved to the device
            of the latents.
        family: What INDIS must know about the pipeline; None for one that is known.

    Returns:
        A handle. As a context manager it disables the sampler at the end.

    Raises:
        ValueError: If the pipeline is not known, begins at a given picture, or has a noise schedule
            that cannot be used, or there is no artifact.
    """
    disable(pipe)
    family = family or family_of(pipe)
    config = pipe.scheduler.config
    if artifact is None:
        artifact = config.get("artifact")
    if artifact is None:
        raise ValueError("artifact must be given, the pipeline was saved with none")
    samplers = _samplers(artifact)
    warn_of_others(pipe, artifact)
    own = type(pipe.scheduler)
    replaces = config["replaces"] if own is IndisScheduler else own.__name__
    recorded = _recorded(artifact)
    scheduler = IndisScheduler.from_config(config, artifact=recorded, replaces=replaces)
    scheduler.samplers = samplers
    return Enabled(pipe, family, scheduler)


def disable(pipe: Any) -> None:
    """Give a pipeline back its own scheduler and methods, if it was enabled."""
    handle = getattr(pipe.scheduler, "pipeline", None)
    if isinstance(handle, Enabled) and handle.pipe is pipe:
        handle.disable()


class Enabled:
    """A pipeline with a sampler in it, see :func:`enable`. It is what the scheduler asks."""

    def __init__(self, pipe: Any, family: Family, scheduler: IndisScheduler) -> None:
        self.pipe, self.family, self.scheduler = pipe, family, scheduler
        self.late, self._process = family.late, process_of(scheduler.config)
        self._own = _stock(pipe.scheduler)
        self._restore: list[Callable[[], None]] = []
        self._prompt: tuple[Any, Mapping[str, Any]] | None = None
        self._latents: Tensor | None = None
        self._arrangement: Mapping[str, Any] = {}
        scheduler.pipeline = self
        pipe.scheduler = scheduler
        for name, seen in (
            ("check_inputs", self._called),
            ("encode_prompt", self._encoded),
            ("prepare_latents", self._prepared),
        ):
            if hasattr(pipe, name):
                self._restore.append(watch(pipe, name, seen))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.disable()

    def disable(self) -> None:
        """Give the pipeline back its own scheduler and methods."""
        if self.pipe.scheduler is self.scheduler:
            self.pipe.scheduler = self._own
        while self._restore:
            self._restore.pop()()

    @property
    def copies(self) -> int:
        """How many copies of the batch the network is shown at once."""
        return 2 if self.family.doubles and self.pipe.do_classifier_free_guidance else 1

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        device: torch.device = self.pipe._execution_device
        return device

    def rows(self, sampler: Sampler) -> int:
        """Return how many times a network call needs: 0 for one that all samples share.

        Raises:
            ValueError: If the pipeline cannot ask at so many times.
        """
        plan = known_plan(sampler.policy)
        shared = plan is not None and len(plan.tau) == 1
        if self.late:
            return 0 if shared else 1
        count = self._batch()
        rows = 0 if shared or count == 1 else count
        if reason := self._refusal(rows > 0):
            raise ValueError(f"{reason}: {ALONE}" if rows else reason)
        return rows

    def begin(self, sampler: Sampler, latents: Tensor | None = None) -> Run | None:
        """Return the run of this call, or None if its starting noise is not there yet.

        The noise becomes, in place, what the network is shown first.
        """
        latents = self._latents if latents is None else latents
        if latents is None:
            return None
        pipe, given = self.pipe, self._arrangement
        unpack, pack = (
            partial(_rearranged, one, pipe, given) for one in (self.family.unpack, self.family.pack)
        )
        features = self._features(sampler, len(latents))
        self._latents = self._prompt = None
        layout, name = Layout(unpack, pack), type(pipe).__name__
        run = Run(sampler, self._process, latents, layout, features, name)
        warn_of_size(getattr(sampler.policy, "shape", None), tuple(run.stepper.x.shape[1:]))
        latents.copy_(run.latents())
        return run

    def _features(self, sampler: Sampler, batch: int) -> Tensor | None:
        """Return the features of the prompts ``(batch, dim)``, if the policy reads any."""
        if not getattr(sampler.policy, "condition_dim", 0) or self._prompt is None:
            return None
        features = self.family.features(self.pipe, *self._prompt)
        if features is None:
            return None
        return features.repeat_interleave(batch // len(features), dim=0)

    def _batch(self) -> int:
        if self._latents is not None:
            return len(self._latents)
        if self._prompt is None:
            raise RuntimeError(f"neither a prompt nor the starting noise was seen: {CALL}")
        return self.family.batch(self._prompt[0])

    def _refusal(self, own_times: bool) -> str | None:
        network = getattr(self.pipe, "transformer", None)
        cache = type(getattr(network, "_cache_config", None)).__name__
        if own_times and cache in CACHES:
            return f"{cache} compares times of a whole batch"
        return self.family.refusal(self.pipe, own_times)

    def _called(self, out: Any, given: Mapping[str, Any]) -> Any:
        """A new call of the pipeline."""
        self._prompt = self._latents = None
        self.scheduler.forget()
        return out

    def _encoded(self, out: Any, given: Mapping[str, Any]) -> Any:
        """The prompts are encoded before the negative ones."""
        if self._prompt is None or not self.family.twice:
            self._prompt = out, given
        return out

    def _prepared(self, out: Any, given: Mapping[str, Any]) -> Any:
        """The starting noise; the caller's own tensor is not written to."""
        first, *others = out if isinstance(out, tuple) else (out,)
        latents, self._arrangement = first.clone(), given
        self._latents = latents
        self.scheduler.begin(latents)
        return (latents, *others) if isinstance(out, tuple) else latents


def _rearranged(one: Callable[..., Tensor], pipe: Any, given: Any, latents: Tensor) -> Tensor:
    return one(pipe, latents, given)


def _samplers(artifact: Any) -> dict[int, Sampler]:
    """Return the samplers by their numbers of network calls."""
    if not isinstance(artifact, Mapping):
        whole = artifact if isinstance(artifact, Sampler) else artifacts.load(artifact)
        each = [whole.at(steps) for steps in whole.policy.counts]
        return {sampler.nfe: sampler for sampler in each}
    found: dict[int, Sampler] = {}
    for calls, one in artifact.items():
        some = _samplers(one)
        if int(calls) not in some:
            known = ", ".join(map(str, some))
            raise ValueError(f"artifact for {calls} network calls must make them, got {known}")
        found[int(calls)] = some[int(calls)]
    return found


def _recorded(artifact: Any) -> str | dict[str, str] | None:
    """Return what a saved pipeline remembers: names, not samplers."""
    if isinstance(artifact, Mapping):
        names = {str(calls): _recorded(one) for calls, one in artifact.items()}
        return names if None not in names.values() else None  # type: ignore[return-value]
    return None if isinstance(artifact, Sampler) else str(artifact)


def _stock(scheduler: Any) -> Any:
    """Return a pipeline's own scheduler, made anew for one that was saved with ours."""
    if isinstance(scheduler, IndisScheduler) and scheduler.config.replaces is not None:
        return getattr(diffusers, scheduler.config.replaces).from_config(scheduler.config)
    return scheduler

"""A diffusers scheduler that follows plans of INDIS."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Protocol, Self

import numpy as np
import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.schedulers.scheduling_utils import (
    KarrasDiffusionSchedulers,
    SchedulerMixin,
    SchedulerOutput,
)
from torch import Tensor

from indis.diffusers.process import process_of
from indis.diffusers.run import Layout, Run, known_plan
from indis.plan import Discretization
from indis.policies import Fixed
from indis.sampler import Sampler
from indis.solvers import Euler, Solver

ALONE = "give the pipeline one sample at a time, or a sampler whose plan all samples share"
CALL = "call indis.diffusers.enable on this very pipeline"
FLOWS = ["FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler"]


class Pipeline(Protocol):
    """What the scheduler asks of the pipeline that it is enabled in."""

    late: bool  # whether the starting noise is first seen by ``scale_model_input``

    @property
    def copies(self) -> int:
        """How many copies of the batch the network is shown at once."""

    @property
    def device(self) -> torch.device:
        """Where the network is."""

    def rows(self, sampler: Sampler) -> int:
        """Return how many times a network call needs: 0 for one that all samples share."""

    def begin(self, sampler: Sampler, latents: Tensor | None = None) -> Run | None:
        """Return the run of this call, or None if its starting noise is not there yet."""


class IndisScheduler(SchedulerMixin, ConfigMixin):
    """A scheduler that steps as a sampler of INDIS does, with times of its own for every sample.

    ``timesteps`` is ``(calls,)``, or ``(calls, batch * copies)`` where samples have plans of their
    own. Row i + 1 is written when step i is made. Make one from a pipeline's own scheduler,
    ``IndisScheduler.from_config(pipe.scheduler.config)``, and give it a plan by :meth:`set_plan`.
    :func:`indis.diffusers.enable` does both, for samplers that read noise and prompts too.

    Args:
        num_train_timesteps: The time of pure noise.
        artifact: The artifact that the pipeline is used with: a folder or name, or one for each
            number of steps.
        replaces: The class of the scheduler that this one was made from.
    """

    order = 1
    init_noise_sigma = 1.0
    _compatibles: ClassVar[list[str]] = [*FLOWS, *(e.name for e in KarrasDiffusionSchedulers)]

    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        artifact: str | dict[str, str] | None = None,
        replaces: str | None = None,
    ) -> None:
        self.samplers: Mapping[int, Sampler] = {}
        self.pipeline: Pipeline | None = None
        self.timesteps: Any = torch.linspace(num_train_timesteps, 1, num_train_timesteps)
        self.sigmas = self.timesteps / num_train_timesteps
        self.num_inference_steps: int | None = None
        self.begin_index: int | None = None
        self.step_index: int | None = None
        self._copies = 1
        self._sampler: Sampler | None = None
        self._run: Run | None = None

    @classmethod
    def from_config(cls, config: Any = None, **kwargs: Any) -> Any:
        """Return a scheduler of the same noise process as the one that ``config`` is of."""
        # Values that were defaults there need not be the defaults of those who read them here.
        given = {k: v for k, v in config.items() if k != "_use_default_values"}
        if given.get("_class_name", cls.__name__) != cls.__name__:
            given["replaces"] = given["_class_name"]
        return super().from_config(given, **kwargs)

    def __len__(self) -> int:
        return int(self.config.num_train_timesteps)

    def set_plan(
        self, plan: Discretization | Tensor | Sampler, solver: Solver | None = None, copies: int = 1
    ) -> Self:
        """Follow a plan that is known before the noise.

        Args:
            plan: The plan, its nodes ``(grid, steps + 1)`` alone, or a sampler whose plan all
                samples share.
            solver: The solver of a plan or of nodes; Euler if None.
            copies: How many copies of the batch the network is shown at once, for a plan with rows:
                2 for classic classifier-free guidance.

        Returns:
            The scheduler itself.

        Raises:
            ValueError: If the plan needs the noise, the prompt or an answer.
        """
        if isinstance(plan, Sampler):
            known, solver = known_plan(plan.policy), plan.solver
            if known is None or plan.analytic_first:
                raise ValueError(
                    "plan must be known before the noise: use indis.diffusers.enable for a sampler "
                    "that is not"
                )
            plan = known.detach()
        if isinstance(plan, Tensor):
            plan = Discretization.plain(plan)
        sampler = Sampler(Fixed(plan), solver or Euler())
        self.samplers, self.pipeline = {sampler.nfe: sampler}, None
        self._copies = copies
        return self

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: torch.device | str | None = None,
        sigmas: Sequence[float] | None = None,
        mu: float | None = None,
        timesteps: Sequence[float] | None = None,
    ) -> None:
        """Begin a call of the pipeline.

        Args:
            num_inference_steps: The number of network calls.
            device: The device of ``timesteps``.
            sigmas: Nothing, or the even ones that some pipelines make by default.
            mu: Ignored: a plan's times are not shifted.
            timesteps: Must be None.

        Raises:
            ValueError: If there is no sampler of so many network calls, or times are given.
        """
        calls = _calls(num_inference_steps, sigmas, timesteps)
        self.forget()
        sampler = self._for(calls)
        self.num_inference_steps, self.step_index, self.begin_index = calls, None, None
        self.sigmas = torch.linspace(1, 0, calls + 1)
        if self.pipeline is not None:
            rows, copies = self.pipeline.rows(sampler), self.pipeline.copies
            device = device or self.pipeline.device
            late = self.pipeline.late and rows > 0
            self.timesteps = _blank(calls, rows * copies, device, late)
            self._start(self.pipeline.begin(sampler))
        else:
            plan = sampler.policy.shared_plan()
            rows = len(plan.tau) if len(plan.tau) > 1 else 0
            self.timesteps = _blank(calls, rows * self._copies, device)
            tau, dtau = plan.start()
            self._write(0, (tau + dtau) * process_of(self.config).unit)
        self._sampler = sampler

    def forget(self) -> None:
        """End a call of the pipeline, whether it came to its end or not."""
        self._sampler = self._run = None

    def begin(self, latents: Tensor) -> None:
        """Take over the starting noise. Nothing happens before :meth:`set_timesteps`.

        Args:
            latents: The noise as the pipeline packs it. It becomes what the network is shown first.
        """
        if self.pipeline is not None and self._sampler is not None and self._run is None:
            self._start(self.pipeline.begin(self._sampler, latents))

    def scale_model_input(self, sample: Tensor, timestep: Tensor | None = None) -> Tensor:
        """Return the sample itself: it is what the network must be shown already.

        Raises:
            ValueError: If guidance was switched off on the way.
        """
        if self._run is None and self.pipeline is not None and self.pipeline.late:
            self.begin(sample)
        if timestep is not None and timestep.ndim and len(timestep) != len(sample):
            raise ValueError(
                f"guidance must not change during a call, got {len(sample)} latents for "
                f"{len(timestep)} times: {ALONE}"
            )
        return sample

    def step(
        self,
        model_output: Tensor,
        timestep: Tensor,
        sample: Tensor,
        generator: Any = None,
        return_dict: bool = True,
    ) -> SchedulerOutput | tuple[Tensor]:
        """Use an answer of the network.

        Args:
            model_output: The answer, guidance included.
            timestep: At which time it was asked.
            sample: What it was shown.
            generator: Ignored: a plan draws nothing.
            return_dict: Whether to return an object, not a tuple.

        Returns:
            What the network must be shown next; after the last call the sample.

        Raises:
            RuntimeError: If this pipeline is not the one that the sampler was enabled in.
        """
        run = self._run or self._first(sample)
        run.advance(model_output, sample)
        self.step_index = (self.step_index or 0) + 1
        if run.done:
            self._sampler = None
        else:
            self._write(self.step_index, run.timestep)
            self.sigmas[self.step_index] = run.sigma
        latents = run.latents()
        return SchedulerOutput(prev_sample=latents) if return_dict else (latents,)

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Refuse to begin anywhere but at the noise."""
        if begin_index:
            raise ValueError(f"begin_index must be 0, the noise, got {begin_index}")
        self.begin_index = begin_index

    def add_noise(self, *_: Any, **__: Any) -> Tensor:
        """Refuse a start at a given picture, as image-to-image and inpainting make it."""
        raise NotImplementedError("a sampler begins at noise, not at a given picture")

    scale_noise = add_noise

    def _for(self, calls: int) -> Sampler:
        if not self.samplers:
            wanted = f" for the artifact {self.config.artifact!r}" if self.config.artifact else ""
            raise ValueError(
                f"scheduler must be given a plan: call indis.diffusers.enable on the pipeline"
                f"{wanted}, or set_plan"
            )
        if calls not in self.samplers:
            known = ", ".join(map(str, sorted(self.samplers)))
            one_of = "one of " if len(self.samplers) > 1 else ""
            raise ValueError(
                f"num_inference_steps must be {one_of}{known}, the network calls of the sampler, "
                f"got {calls}"
            )
        return self.samplers[calls]

    def _start(self, run: Run | None) -> None:
        """Begin a run, and write the time of its first network call."""
        if run is not None:
            self._run = run
            self._write(0, run.timestep)
            self.sigmas[0] = run.sigma

    def _first(self, sample: Tensor) -> Run:
        """Return the run of a plan of :meth:`set_plan`, which is begun by the first answer."""
        if self.pipeline is not None or self._sampler is None:
            raise RuntimeError(f"the starting noise was not seen, the first time is NaN: {CALL}")
        run = Run(self._sampler, process_of(self.config), sample, Layout())
        if not torch.equal(run.latents(), sample):
            raise ValueError(
                "plan must show the network the noise as it is first: use indis.diffusers.enable "
                "for one that does not"
            )
        self._run = run
        self.sigmas[0] = run.sigma
        return run

    def _write(self, i: int, times: Tensor) -> None:
        """Write row i of ``timesteps`` in place: the pipeline holds views of it."""
        row = self.timesteps[i]
        if not row.ndim:
            times = times[0]
        else:
            times = times.repeat(self.pipeline.copies if self.pipeline else self._copies)
            if isinstance(self.timesteps, list):
                row.resize_(len(times))
        row.copy_(times)


def _calls(
    count: int | None, sigmas: Sequence[float] | None, timesteps: Sequence[float] | None
) -> int:
    """Return the number of network calls. Several pipelines pass even sigmas by default."""
    calls = len(sigmas) if sigmas is not None else count
    even = sigmas is None or np.allclose(sigmas, np.linspace(1, 1 / len(sigmas), len(sigmas)))
    if timesteps is not None or not even or calls is None:
        name = "timesteps" if timesteps is not None else "sigmas"
        raise ValueError(f"{name} must be left out, the sampler has times of its own")
    return calls


def _blank(calls: int, width: int, device: Any, late: bool = False) -> Any:
    """Return times that are not known yet: numbers, rows, or rows of which no width is known."""
    shape = (calls, width) if width else (calls,)
    times = torch.full(shape, torch.nan, device=device)
    return [row.clone() for row in times] if late else times

"""Policies turn a sample's starting noise and condition into a plan.

====================  ==================================================  ==========================
policy                whose plan it is                                    what is learned
====================  ==================================================  ==========================
:class:`Fixed`        the same for all samples                            nothing
LearnedPolicy         three choices: what it reads (nothing, the noise    a table of logits, or a
                      or the network's answers), what it moves            network
                      (times, shifts, scales, weights, the picture),
                      and for which numbers of steps
====================  ==================================================  ==========================

A published method with a parametrisation of its own has a policy of its own beside its config, in
:mod:`indis.methods`. Every learned policy starts at a base grid: untrained, it is its base solver.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Self

from torch import Tensor, nn

from indis.denoise import Denoiser
from indis.noise import same_schedule
from indis.numerics import TIME_DTYPE
from indis.plan import Discretization, Keep, Plan


class Policy(nn.Module, ABC):
    """Maps noise and condition to a plan of ``steps`` steps.

    ``to_zero`` says whether the last step goes to zero noise. ``order`` is how many multistep
    weights a plan corrects; the solver must remember as many answers. Subclasses that were made for
    one noise schedule, form of answers or shape of samples have ``schedule``, ``native`` or
    ``shape``, which :meth:`check` compares with a denoiser's.
    """

    steps: int
    to_zero: bool = False
    order: int = 0

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        # Times stay float64 on the CPU wherever the networks go (see indis.plan).
        held = [*self.buffers(), *self.parameters()]
        held += [p.grad for p in self.parameters() if p.grad is not None]
        times = {id(tensor) for tensor in held if tensor.dtype == TIME_DTYPE}
        return super()._apply(lambda t: t if id(t) in times else fn(t), recurse)

    @abstractmethod
    def forward(
        self, noise: Tensor, features: Tensor | None = None, index: Tensor | None = None
    ) -> Plan:
        """Return the plan of a batch.

        Args:
            noise: unit noise ``(batch, *shape)``.
            features: features of the condition ``(batch, dim)``.
            index: the samples' numbers in their data set ``(batch,)``, for a policy that has a plan
                of its own for each of them.
        """

    @property
    def counts(self) -> tuple[int, ...]:
        """The numbers of steps that :meth:`at` accepts."""
        return (self.steps,)

    def at(self, steps: int) -> Self:
        """Return this policy for ``steps`` steps: a view that shares its parameters.

        Raises:
            ValueError: if it was not made for that number.
        """
        if steps != self.steps:
            raise ValueError(f"steps must be {self.steps}, got {steps}")
        return self

    def check(self, denoiser: Denoiser) -> None:
        """Refuse a denoiser on which this policy would give wrong samples.

        Raises:
            ValueError: if its schedule, form of answers or shape is not the policy's.
        """
        schedule, native = (getattr(self, name, None) for name in ("schedule", "native"))
        if schedule is not None and not same_schedule(schedule, denoiser.schedule):
            raise ValueError(
                f"denoiser must have the schedule of the sampler, {schedule}, "
                f"got {denoiser.schedule}"
            )
        if native is not None and native is not denoiser.native:
            raise ValueError(
                f"denoiser must answer in the sampler's form, {native.value}, "
                f"got {denoiser.native.value}"
            )

    def shared_plan(self) -> Discretization:
        """Return the plan that all samples share.

        Raises:
            TypeError: if there is none.
        """
        raise TypeError(f"policy {type(self).__name__} has no plan that all samples share")

    def describe(self) -> dict[str, Any]:
        """Return the hyper-parameters as JSON; with the state, :meth:`rebuild` undoes it.

        Raises:
            TypeError: if this kind of policy is not stored.
        """
        raise TypeError(f"policy {type(self).__name__} cannot be saved")

    @classmethod
    def rebuild(cls, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Self:
        """Return the policy with these hyper-parameters and this state."""
        raise TypeError(f"policy {cls.__name__} cannot be loaded")

    def frozen(self) -> Policy:
        """Return what is kept after tuning: a shared plan needs its parametrisation no more."""
        return self

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """Return the parameters by what they are.

        "plan" are numbers of a plan themselves, "network" the weights of a network that makes
        plans, "picture" those of one that corrects pictures. They learn at different rates.
        """
        return {"plan": list(self.parameters())}

    def parameter_count(self) -> int:
        """Return how many learned numbers have an effect."""
        return sum(p.numel() for p in self.parameters())


def shared_grid(base: Tensor) -> Tensor:
    """Return a copy of a base grid ``(1, steps + 1)``.

    Raises:
        ValueError: if it has another shape.
    """
    if base.ndim != 2 or base.shape[0] != 1 or base.shape[1] < 2:
        raise ValueError(f"base must be a shared grid (1, steps + 1), got {tuple(base.shape)}")
    return base.detach().clone()


class SharedPolicy(Policy):
    """A policy whose plan is the same for all samples: subclasses return it as
    :meth:`~Policy.shared_plan`.
    """

    def forward(
        self, noise: Tensor, features: Tensor | None = None, index: Tensor | None = None
    ) -> Plan:
        """Return the plan, whatever the sample."""
        return self.shared_plan()

    def frozen(self) -> Policy:
        """Return the plan without its parametrisation."""
        return Fixed(self.shared_plan().detach())


COLUMNS = ("tau", "dtau", "gamma", "weights", "stretch")


class Fixed(SharedPolicy):
    """A given plan, shared by all samples.

    Args:
        plan: the plan, or times ``(1, steps + 1)`` without shifts and with unit scales.
    """

    tau: Tensor
    dtau: Tensor
    gamma: Tensor
    weights: Tensor | None
    stretch: Tensor | None
    keep: Keep

    def __init__(self, plan: Discretization | Tensor) -> None:
        super().__init__()
        plan = Discretization.plain(plan) if isinstance(plan, Tensor) else plan
        self.steps, self.keep, self.to_zero = plan.steps, plan.keep, plan.to_zero
        self.order = 0 if plan.weights is None else plan.weights.shape[2]
        for name in COLUMNS:
            self.register_buffer(name, getattr(plan, name))
        self._plan = plan
        self._checked: object = None

    def shared_plan(self) -> Discretization:
        """Return the plan: the same object in each run, since runs keep their numbers with it."""
        if all(getattr(self._plan, name) is getattr(self, name) for name in COLUMNS):
            return self._plan
        return replace(self._plan, **{name: getattr(self, name) for name in COLUMNS})

    def check(self, denoiser: Denoiser) -> None:
        """Refuse a denoiser whose schedule does not contain the plan's times."""
        plan, schedule = self.shared_plan(), denoiser.schedule
        checked = (schedule, plan.versions())
        if (
            self._checked != checked
        ):  # reading all numbers in every run would take as long as a step
            plan.check(schedule).check_start(schedule)
            self._checked = checked

    def describe(self) -> dict[str, Any]:
        """Return what the columns of the plan do not say; they are the state.

        Raises:
            TypeError: if the plan belongs to certain samples, as one with churn does.
        """
        if any(v is not None for v in (*self._plan.churn, *self._plan.corrections)):
            raise TypeError("a plan with churn or corrections of pictures cannot be saved")
        return {"keep": self.keep, "to_zero": self.to_zero}

    @classmethod
    def rebuild(cls, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Self:
        """Return the plan of these columns."""
        columns: dict[str, Any] = dict(tensors)
        return cls(Discretization(**columns, keep=config["keep"], to_zero=config["to_zero"]))

    def frozen(self) -> Policy:
        """Return itself."""
        return self

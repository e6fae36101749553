"""A plan as a list of sigmas for other tools, and phi as a graph.

    plan = sampler.realized_plan(denoiser, noise, condition)
    if not lost_in_sigmas(plan, shared=True, analytic_first=sampler.analytic_first):
        levels = sigmas(denoiser.schedule, plan)[0].tolist()

ComfyUI takes all of them, diffusers all but the last, for which it puts 0.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from indis.noise import NoiseSchedule, RectifiedFlow
from indis.plan import Discretization
from indis.policies import LearnedPolicy


def sigmas(schedule: NoiseSchedule, plan: Discretization) -> Tensor:
    """Return the noise levels ``(grid, steps + 1)`` of a plan's nodes, as other tools count them.

    They are the times of a flow, and sigma / alpha of other schedules.
    """
    nodes = plan.tau[:, :-1] if plan.to_zero else plan.tau
    if isinstance(schedule, RectifiedFlow):
        levels = schedule.sigma(nodes)
    else:
        levels = torch.exp(-schedule.log_snr(nodes))
    if plan.to_zero:
        levels = torch.cat([levels, torch.zeros_like(levels[:, :1])], dim=1)
    return levels


def unshift(schedule: NoiseSchedule, values: Sequence[float], shift: float) -> list[float]:
    r"""Return the sigmas s that a tool, by its shift S, turns into the given ones.

    The tool uses :math:`S s / (1 + (S - 1) s)`, so this is :math:`v / (S - (S - 1) v)`.

    Args:
        schedule: The model's schedule.
        values: Sigmas, times of a flow.
        shift: The tool's ``shift``, or exp(mu) if it has a mu.

    Raises:
        ValueError: If the model is no flow, or S is not positive.
    """
    if not isinstance(schedule, RectifiedFlow):
        raise ValueError(f"shift must be left out for {schedule}, whose sigmas are not shifted")
    if not 0 < shift < float("inf"):
        raise ValueError(f"shift must be positive and finite, got {shift}")
    return [value / (shift - (shift - 1) * value) for value in values]


def lost_in_sigmas(plan: Discretization, *, shared: bool, analytic_first: bool) -> list[str]:
    """Return what of a plan a list of sigmas cannot say."""
    parts = {
        "time shifts": bool((plan.dtau != 0).any()),
        "scales of the network's output": bool((plan.gamma != 1).any()),
        "corrected multistep weights": plan.weights is not None or plan.stretch is not None,
        "fresh noise between steps": bool(plan.churn),
        "corrections of the picture": bool(plan.corrections),
        "differences between samples": not shared,
        "the closed form of the first step": analytic_first,
    }
    return [name for name, lost in parts.items() if lost]


class _Phi(nn.Module):
    """phi(x_T, c) of the paper as a function of tensors."""

    def __init__(self, policy: LearnedPolicy) -> None:
        super().__init__()
        self.policy = policy

    def forward(
        self, noise: Tensor, features: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        plan = self.policy(noise, features)
        assert isinstance(plan, Discretization)
        return plan.tau, plan.dtau, plan.gamma


def export_phi(policy: LearnedPolicy, batch: int = 1) -> torch.export.ExportedProgram:
    """Return phi as a graph ``(noise, features) -> (tau, dtau, gamma)`` by torch.export.

    Args:
        policy: A policy that reads the noise, for one number of steps, without corrected weights.
        batch: The number of samples; a graph serves this one alone.

    Returns:
        The graph. It takes ``(batch, *shape)`` and, of a policy that reads a condition, ``(batch,
        condition_dim)``, and returns times, shifts and scales ``(batch, steps + 1)``, ``(batch,
        steps)`` and ``(batch, steps)`` in float64. ``torch.export.save`` writes it.

    Raises:
        ValueError: If the policy reads something else, or its plan is more than three columns.
    """
    if policy.shape is None or policy.reads != "noise":
        raise ValueError(
            f"policy must read the noise to be a graph of it, got one that reads {policy.reads}"
        )
    if policy.order:
        raise ValueError(f"policy must correct no weights to be exported, got {policy.order}")
    example = [torch.zeros(batch, *policy.shape)]
    if policy.condition_dim:
        example.append(torch.zeros(batch, policy.condition_dim))
    return torch.export.export(_Phi(policy).eval(), tuple(example), strict=False)

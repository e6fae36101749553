"""A plan as a list of sigmas, for ``pipe(sigmas=...)`` of diffusers and ManualSigmas of ComfyUI.

    plan = sampler.realized_plan(denoiser, noise, condition)
    if not lost_in_sigmas(plan, shared=True, analytic_first=sampler.analytic_first):
        levels = sigmas(denoiser.schedule, plan)[0].tolist()

ComfyUI takes all of them, diffusers all but the last, for which it puts 0.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from indis.noise import NoiseSchedule, RectifiedFlow
from indis.plan import Discretization


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

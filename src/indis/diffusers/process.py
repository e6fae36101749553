"""What a scheduler's config says of the noise process and of what the network predicts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from diffusers import DDIMScheduler
from torch import Tensor

from indis.denoise import Form, velocity_from_v
from indis.noise import RectifiedFlow, TableVP, same_levels
from indis.numerics import TIME_DTYPE
from indis.policies import Fixed, Policy

NATIVE = {
    "epsilon": Form.NOISE,
    "v_prediction": Form.VELOCITY,
    "sample": Form.DATA,
    "flow_prediction": Form.VELOCITY,
}


@dataclass(frozen=True)
class Process:
    """The noise process of a pipeline.

    Args:
        schedule: The noise schedule.
        prediction: What the network predicts, in diffusers' words.
        unit: A time of the pipeline over a time of the schedule: 1000 for flows, 1 for tables.
    """

    schedule: RectifiedFlow | TableVP
    prediction: str
    unit: float

    @property
    def native(self) -> Form:
        """The form of answers after :meth:`answer`."""
        return NATIVE[self.prediction]

    def answer(self, output: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """Return the network's output in the native form; v becomes a velocity.

        Args:
            output: The output ``(batch, *shape)``.
            x: What the network was shown, same shape.
            t: At which times of the schedule, ``(batch,)``.
        """
        if self.prediction != "v_prediction":
            return output
        return velocity_from_v(output, x=x, schedule=self.schedule, t=t)

    def fitted(self, policy: Policy) -> Process:
        """Return the process with the range of times that a policy was fitted on.

        Raises:
            ValueError: If the policy's noise schedule is another one.
        """
        if isinstance(policy, Fixed):  # a grid may begin before the last step of a table
            first = float(policy.tau[:, 0].max())
            return replace(self, schedule=replace(self.schedule, t_max=first))
        theirs = getattr(policy, "schedule", None)
        if theirs is None:
            return self
        if not same_levels(self.schedule, theirs):
            raise ValueError(
                f"artifact must be fitted on the noise schedule of the pipeline, {self.schedule}, "
                f"got {theirs}"
            )
        return replace(self, schedule=theirs)


def process_of(config: Mapping[str, Any]) -> Process:
    """Return the noise process that a scheduler's config describes.

    A flow begins at pure noise. A table begins with unit noise at its last step, as diffusers'
    schedulers do.

    Args:
        config: The config of a diffusers scheduler, or of an :class:`IndisScheduler` made from it.

    Raises:
        ValueError: If it is of another kind, such as EDM.
    """
    prediction = config.get("prediction_type") or "epsilon"
    if "sigma_data" in config:
        raise ValueError(
            f"scheduler must be of a flow or of a table of betas, got {config.get('replaces')!r}, "
            "which preconditions its network as EDM does"
        )
    if _is_flow(config):
        steps = float(config.get("num_train_timesteps", 1000))
        return Process(RectifiedFlow(), "flow_prediction", steps)
    if prediction not in NATIVE:
        raise ValueError(f"prediction_type must be one of {', '.join(NATIVE)}, got {prediction!r}")
    own = {k: v for k, v in config.items() if k in TABLE}
    table = DDIMScheduler(**own).alphas_cumprod.to(TIME_DTYPE)
    table[-1] = 0 if table[-1] < ZERO else table[-1]
    return Process(TableVP(table, prior="unit"), prediction, 1.0)


# The arguments of DDIMScheduler that make the table.
TABLE = (
    "num_train_timesteps",
    "beta_start",
    "beta_end",
    "beta_schedule",
    "trained_betas",
    "rescale_betas_zero_snr",
)
# Some schedulers put this instead of 0 at the end of a table with zero terminal SNR.
ZERO = 1e-7


def _is_flow(config: Mapping[str, Any]) -> bool:
    """Flow schedulers have no betas; those of both kinds have a switch."""
    flow = config.get("prediction_type") == "flow_prediction" or config.get("use_flow_sigmas")
    return bool(flow) or "beta_start" not in config

"""``indis export``: a sampler's sigmas, as other tools take them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import tyro
from rich.console import Console
from rich.table import Table

from indis.cli.console import emit
from indis.cli.paths import writable_file
from indis.cli.plan import ShowPlan
from indis.export import lost_in_sigmas, sigmas, unshift
from indis.noise import RectifiedFlow
from indis.solvers import DPMSolverPP, Euler, Heun, Solver
from indis.storage import describe

TOOLS = {
    "diffusers": "diffusers, pipe(sigmas=...)",
    "comfyui": "ComfyUI, ManualSigmas",
    "sd.cpp": "stable-diffusion.cpp, --sigmas",
    "mflux": "mflux, sigmas of its scheduler",
    "forge": "Forge, sigmas of a scheduler",
}


@dataclass(frozen=True)
class Export(ShowPlan):
    """Print a sampler's sigmas for other tools, and what a list cannot carry.

    A list is of one plan: that of all samples, or of the first seed.

    Example: indis export --artifact fashion-nfe3-god

    Example: indis export --model mine:flux --artifact runs/flux-n8 --unshift 3.158
    """

    unshift: Annotated[float | None, tyro.conf.arg(metavar="S", help_behavior_hint="")] = None
    """Give diffusers sigmas that its scheduler shifts by S again. For a mu, S is exp(mu)."""

    def run(self) -> None:
        """Print the table."""
        writable_file(self.json)
        sampler, denoiser, plan, shared = self.planned()
        levels = sigmas(denoiser.schedule, plan)[0].tolist()
        listed = dict.fromkeys(TOOLS, levels)
        # diffusers appends the last sigma, 0, itself. Others take all of them as they are.
        listed["diffusers"] = levels[:-1]
        if self.unshift is not None:
            listed["diffusers"] = unshift(denoiser.schedule, levels[:-1], self.unshift)
        lost = lost_in_sigmas(plan, shared=shared, analytic_first=sampler.analytic_first)
        flow = isinstance(denoiser.schedule, RectifiedFlow)
        rows = [
            {
                "tool": tool,
                "model": denoiser.name,
                "sigmas": text(values),
                "shift": shift_note(tool, flow, self.unshift),
                "solver": solver_there(tool, sampler.solver),
                "dtype": "float32",
            }
            for tool, values in listed.items()
        ]
        console = Console(highlight=False)
        console.print(f"model {denoiser.name}, solver {sampler.solver}", markup=False)
        table = Table("tool", "shift", "solver there", "dtype of times")
        for row in rows:
            table.add_row(TOOLS[row["tool"]], row["shift"], row["solver"], row["dtype"])
        console.print(table)
        for row in rows:  # outside of the table, where a terminal does not break them
            console.print(f"{row['tool']}: {row['sigmas']}", markup=False, soft_wrap=True)
        for sentence in _warnings(lost, levels, None if shared else self.seed[0]):
            console.print(sentence, markup=False, soft_wrap=True)
        told: dict[str, Any] = {"model": denoiser.name, "solver": describe(sampler.solver)}
        told |= {"rows": rows, "sigmas": listed, "unshift": self.unshift, "lost": lost}
        emit(told | {"seed": None if shared else self.seed[0]}, self.json)


def text(values: Sequence[float]) -> str:
    """Return sigmas separated by commas, without exponents, which ComfyUI's ManualSigmas misreads.

    Nine decimals are kept below 1, and nine significant digits above.
    """
    return ", ".join(f"{value:.9f}" if value < 1 else f"{value:.9g}" for value in values)


def shift_note(tool: str, flow: bool, shift: float | None) -> str:
    """Say whether a list has the model's shift in it, and what the tool must do."""
    if not flow:
        return "none in this model"
    if tool == "diffusers" and shift is not None:
        return f"undone; the scheduler must shift by {shift:g}"
    return "applied; the tool must not shift again"


SOLVERS = {
    Euler(): {
        "diffusers": "an Euler scheduler",
        "comfyui": "euler",
        "sd.cpp": "euler",
        "mflux": "its own",
        "forge": "Euler",
    },
    Heun(): {"comfyui": "heun", "sd.cpp": "heun", "forge": "Heun"},
    DPMSolverPP(2): {"comfyui": "dpmpp_2m", "sd.cpp": "dpm++2m", "forge": "DPM++ 2M"},
}


def solver_there(tool: str, solver: Solver) -> str:
    """Return the solver of a tool that is this one, or say that none is known."""
    return SOLVERS.get(solver, {}).get(tool, "none known; samples differ")


def _warnings(lost: Sequence[str], levels: Sequence[float], seed: int | None) -> list[str]:
    """Say what of the plan is not in the lists."""
    said = ["Times in bfloat16 are rounded to about three digits; keep them in float32."]
    if seed is not None:
        said.append(f"Every sample has its own plan; this is that of seed {seed}.")
    if lost:
        said.append(f"A list cannot carry, and so these drop: {', '.join(lost)}.")
    if levels[-1]:
        said.append(f"diffusers goes to sigma 0 in its last step, instead of {levels[-1]:.7g}.")
    return said

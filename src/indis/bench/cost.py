"""What a comparison on an EDM network will cost, before anything runs: calls, hours, disk, memory.

Operations and activations are measured on the meta device, where tensors have shapes and no
content. A fit's memory is the activations that its backward pass keeps.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from indis.bench.lineup import Lineup
from indis.bench.suite import Sizes
from indis.methods.method import GridMethod, Method
from indis.models.edm import EDMModel

# A third of the 495 TFLOP/s that an H100 SXM reaches in dense TF32 by its data sheet: what
# convolutions of these sizes can be expected to reach, and not a measurement.
H100_FLOPS = 165e12
FLOAT = 4  # bytes


@dataclass(frozen=True)
class CallCost:
    """One network call of one sample.

    ``flops`` counts a multiplication and an addition as two, ``saved`` is bytes that a backward
    pass through the call keeps, ``weights`` is bytes of parameters.
    """

    flops: int
    saved: int
    weights: int


def call_cost(model: EDMModel) -> CallCost:
    """Measure a call of a model; on the meta device it needs neither weights nor time."""
    network = model.network
    weights = {id(p) for p in network.parameters()}
    saved: dict[int, int] = {}

    def keep(value: Tensor) -> Tensor:
        if id(value) not in weights:
            storage = value.untyped_storage()
            saved[storage._cdata] = storage.nbytes()
        return value

    x = torch.zeros(1, *model.shape, device=model.device, requires_grad=True)
    level = torch.zeros(1, device=model.device)
    counter = FlopCounterMode(display=False)
    with counter, saved_tensors_hooks(keep, lambda value: value):
        answer = network(x, level)
    bytes_of_weights = sum(p.numel() for p in network.parameters()) * FLOAT
    del answer  # until here the storages' addresses are their own
    return CallCost(counter.get_total_flops(), sum(saved.values()), bytes_of_weights)


@dataclass(frozen=True)
class Budget:
    """The calls of a comparison, in samples times evaluations, and what they need.

    Args:
        calls: by stage; a call with its backward pass counts as ``fit``.
        searches: learned cells whose search is not counted.
        cells: number of rows.
        disk: bytes of end points.
        memory: bytes of a fit.
    """

    call: CallCost
    calls: dict[str, int]
    searches: list[str]
    cells: int
    disk: int
    memory: int
    recompute: bool

    @property
    def hours(self) -> dict[str, float]:
        """Hours of a stage on an H100 at :data:`H100_FLOPS`."""
        # The backward pass leaves out the weights, so it costs as much as the forward pass.
        factor = {"fit": 3 if self.recompute else 2}
        unit = self.call.flops / H100_FLOPS / 3600
        return {stage: n * factor.get(stage, 1) * unit for stage, n in self.calls.items()}

    def lines(self) -> Iterator[str]:
        """Yield the plan as text."""
        unit = f"{self.call.flops / 1e9:.1f} GFLOP a call of one sample"
        yield f"{self.cells} rows; {unit}, {H100_FLOPS / 1e12:.0f} TFLOP/s assumed of an H100"
        for stage, hours in self.hours.items():
            yield f"{stage:10} {self.calls[stage]:>16,} calls {hours:10.2f} h"
        yield f"{'all':10} {sum(self.calls.values()):>16,} calls {sum(self.hours.values()):10.2f} h"
        yield f"disk       {self.disk / 1e9:.2f} GB of end points"
        way = "calls recomputed" if self.recompute else "no call recomputed"
        yield f"memory     {self.memory / 1e9:.1f} GB in a fit, {way}; the loss comes on top"
        searches = f", the searches of {', '.join(self.searches)}" if self.searches else ""
        yield f"not counted: the loss, Inception{searches}"


def budget(lineup: Lineup, sizes: Sizes) -> Budget:
    """Return what a comparison will cost.

    Args:
        lineup: its cells, on a bench whose network is without weights.
        sizes: end points, samples and recipe.
    """
    model = lineup.bench.denoiser
    assert isinstance(model, EDMModel)
    recipe, learned = sizes.recipe, lineup.learned()
    methods = [lineup.method(cell) for cell in learned]
    # Above a cell's NFE where a method asks several times in parallel.
    asked = [method.untrained(model).nfe for method in methods]
    fits = [n for n, method in zip(asked, methods, strict=True) if not _searches(method)]
    grids = lineup.heuristic()
    plain = [cell.nfe for cells in grids for cell in cells]
    best = [cells[0].nfe for cells in grids if cells]  # of the grids only these are sampled
    validations = 1 + -(-recipe.iterations // recipe.validate_every)
    pairs = sizes.endpoints + sizes.heldout
    calls = {
        "teach": pairs * lineup.bench.teacher_steps,
        "fit": sum(fits) * recipe.iterations * recipe.batch,
        "validate": sum(fits) * validations * recipe.holdout,
        "judge": sum(asked + plain) * sizes.heldout + sum(asked + best) * sizes.samples,
    }
    call = call_cost(model)
    kept = 1 if recipe.recompute else max(fits, default=0)
    return Budget(
        call,
        calls,
        sorted({method.name for method in methods if _searches(method)}),
        len(learned) + len(plain),
        pairs * prod(model.shape) * FLOAT,
        call.weights + kept * recipe.batch * call.saved,
        recipe.recompute,
    )


def _searches(method: Method) -> bool:
    """Whether a method computes its grid, at a cost of its own."""
    return isinstance(method, GridMethod)

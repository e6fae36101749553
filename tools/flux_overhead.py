"""What phi and *local* cost beside FLUX: FLOPs at the real sizes, times on a mid-size random FLUX.

python tools/flux_overhead.py             # FLOPs, on the meta device: nothing is computed
python tools/flux_overhead.py --measure   # besides, processor times of five evaluations
"""

import argparse
import time
from collections.abc import Callable
from typing import Any

import torch
from diffusers import FluxTransformer2DModel
from torch.utils.flop_counter import FlopCounterMode

import indis

CALLS, CHANNELS, FEATURES = 5, 16, 4096 + 768


def transformer(blocks: int = 19, single: int = 38, heads: int = 24) -> FluxTransformer2DModel:
    """FLUX.1-dev, or one of fewer blocks and heads."""
    return FluxTransformer2DModel(
        num_layers=blocks,
        num_single_layers=single,
        num_attention_heads=heads,
        guidance_embeds=True,
    )


def inputs(side: int, tokens: int = 512) -> dict[str, torch.Tensor]:
    """The arguments of one call for latents of ``side`` x ``side`` places before patches."""
    places = (side // 2) ** 2
    return {
        "hidden_states": torch.randn(1, places, 64),
        "encoder_hidden_states": torch.randn(1, tokens, 4096),
        "pooled_projections": torch.randn(1, 768),
        "timestep": torch.ones(1),
        "guidance": torch.ones(1),
        "img_ids": torch.zeros(places, 3),
        "txt_ids": torch.zeros(tokens, 3),
    }


def policy(side: int, local: bool) -> indis.LearnedPolicy:
    """Phi that reads noise and prompt, or *local*, which corrects places at each step."""
    flow = indis.RectifiedFlow()
    base, bounds = indis.grids.named("natural")(flow, CALLS), indis.Bounds.natural(flow)
    kind: dict[str, Any] = {"reads": "noise"}
    if local:
        kind = {"reads": "answers", "native": indis.Form.VELOCITY, "picture": "both"}
    shape = (CHANNELS, side, side)
    return indis.LearnedPolicy(base, flow, bounds, shape=shape, condition_dim=FEATURES, **kind)


def without_network(side: int, name: str) -> Callable[[], Any]:
    """Return a run of "phi" or "local" on a network that costs nothing."""
    own = policy(side, name == "local")
    sampler = indis.Sampler(own, indis.solvers.named("ipndm:2"))
    free = indis.Wrapped(lambda x, t, c: x, own.schedule, own.shape, indis.Form.VELOCITY)
    condition = indis.Condition(features=torch.randn(1, FEATURES))
    noise = torch.randn(1, CHANNELS, side, side)
    return lambda: sampler(free, noise, condition)


def flops(run: Callable[[], Any]) -> float:
    """FLOPs of a call, as torch counts them: matrix products, convolutions and attention."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        run()
    return counter.get_total_flops()


def counted(side: int) -> dict[str, float]:
    """FLOPs of one evaluation of FLUX.1 and, for a whole sample, of phi and *local*."""
    with torch.device("meta"):
        network, given = transformer(), inputs(side)
    found = {"network": flops(lambda: network(**given))}
    return found | {name: flops(without_network(side, name)) for name in ("phi", "local")}


def measured(side: int, repeats: int = 5) -> dict[str, float]:
    """Median processor time of an evaluation of a mid-size FLUX, and of phi and *local*."""
    network, given = transformer(2, 4, 8).eval(), inputs(side)
    parts: dict[str, Callable[[], Any]] = {"network": lambda: network(**given)}
    parts |= {name: without_network(side, name) for name in ("phi", "local")}
    found: dict[str, list[float]] = {name: [] for name in parts}
    with torch.no_grad():
        for _ in range(repeats + 1):  # the first is not counted
            for name, run in parts.items():
                start = time.process_time()
                run()
                found[name].append(time.process_time() - start)
    return {name: sorted(times[1:])[repeats // 2] for name, times in found.items()}


parser = argparse.ArgumentParser()
parser.add_argument("--measure", action="store_true")
args = parser.parse_args()
for pixels in (512, 1024):
    numbers = counted(pixels // 8)
    whole = CALLS * numbers["network"]
    print(f"{pixels} x {pixels}: one evaluation of FLUX.1 {numbers['network'] / 1e12:.2f} TFLOP")
    for name in ("phi", "local"):
        part = numbers[name] / whole
        print(f"  {name:6} {numbers[name] / 1e9:8.3f} GFLOP, {part:.4%} of {CALLS} evaluations")
if args.measure:
    numbers = measured(32)
    for name in ("phi", "local"):
        part = numbers[name] / (CALLS * numbers["network"])
        print(f"measured, 256 x 256: the loop with {name} is {part:.2%} of {CALLS} evaluations")

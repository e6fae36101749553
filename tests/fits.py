"""A small fit on the toy, and how tests stop it and look at it."""

from indis import INDIS, Fit, Recipe
from indis.losses import squared_distance
from small_cases import toy, toy_pairs

SMALL = {"iterations": 12, "batch": 16, "lr": 2e-2, "holdout": 32, "validate_every": 3}
SMALL |= {"probes": 0, "settle": 0.0}


def start(per_instance=True, loss=squared_distance, denoiser=None, **changes) -> Fit:
    fitting = Recipe(**SMALL | changes)
    reads = "noise" if per_instance else "nothing"
    config = INDIS(3, "euler", "uniform", reads=reads, recipe=fitting, width=16, depth=2)
    return config.tuning(denoiser or toy(), toy_pairs(), loss)


def finish(process) -> Fit:
    list(process.run())
    return process


def advance(process, steps):
    """Stop after some iterations, as an interrupt would."""
    run = process.run()
    states = [next(run) for _ in range(steps)]
    run.close()
    return states


def state(process):
    return {k: v.detach().clone() for k, v in process.sampler.policy.state_dict().items()}

"""Every method on a denoiser of videos (channels, frames, height, width), as of LTX's latents;
frames may differ."""

from dataclasses import replace
from functools import cache

import pytest
import torch

from indis import (
    Form,
    Recipe,
    RectifiedFlow,
    Wrapped,
    artifact,
    endpoint_batches,
    gather,
    heuristic,
    losses,
)
from indis.methods import METHODS
from indis.numerics import broadcast
from indis.policies.encoders import trunk_for
from indis.policies.spatial import SpatialCorrector
from methods.cases import CASES
from problems import seeded
from small_cases import sentence

SHAPE = (2, 3, 6, 4)
SHORT = Recipe(iterations=2, batch=8, lr=0.05, holdout=8, validate_every=1)
OWN = {"ld3": {"pairs": 16}, "gits": {"samples": 16}, "ays": {"samples": 8, "fine": 40}}
OWN |= {name: {"features": "answer"} for name in ("amed", "amed-plugin")}


def velocity(x, t, condition):
    return (
        torch.sin(1.3 * x + broadcast(torch.cos(2 * t), x))
        + 0.3 * x.flip(-1)
        - 0.2 * x.roll(1, dims=2)
    )


VIDEO = Wrapped(velocity, RectifiedFlow(0.02, 0.95), SHAPE, Form.VELOCITY)


@cache
def pairs():
    return gather(
        list(
            endpoint_batches(
                VIDEO, heuristic(VIDEO, solver="euler", grid="uniform", steps=6), range(24)
            )
        )
    )


@pytest.mark.parametrize("name", list(METHODS))
def test_it_tunes_draws_and_comes_back_from_disk(name, tmp_path):
    case = replace(CASES[name], grid="uniform", loss="mse", recipe=SHORT, **OWN.get(name, {}))
    process = case.tuning(VIDEO, pairs(), losses.named("mse"))
    assert list(process.run())[-1].best < float("inf")
    artifact.save(process.sampler, tmp_path)
    noise = seeded(3, *SHAPE, seed=1, dtype=torch.float32)
    with torch.no_grad():
        drawn = process.sampler(VIDEO, noise)
        assert drawn.shape == (3, *SHAPE) and bool(drawn.isfinite().all())
        assert torch.equal(artifact.load(tmp_path)(VIDEO, noise), drawn)


def test_a_trunk_tells_the_halves_of_a_video_apart_and_takes_any_length():
    torch.manual_seed(0)
    trunk, video = trunk_for((2, 6, 8, 8), 16, 3), seeded(2, 2, 6, 8, 8, dtype=torch.float32)
    assert not torch.allclose(trunk(video), trunk(video.flip(2)))
    inside = torch.cat([video[:, :, [1, 0, 2]], video[:, :, 3:]], dim=2)
    torch.testing.assert_close(trunk(inside), trunk(video))
    for frames in (1, 5, 9):
        assert trunk(seeded(2, 2, frames, 8, 12, dtype=torch.float32)).shape == (2, 16)


def test_places_of_a_video_are_those_of_its_frames():
    torch.manual_seed(0)
    reader = SpatialCorrector(SHAPE, 5, 0, "weights", 8)
    torch.nn.init.normal_(reader.leave.weight)
    maps, context = seeded(2, 6, 3, 6, 5, dtype=torch.float32), seeded(2, 5, dtype=torch.float32)
    out = reader.read(maps, context)
    assert out.shape == (2, 2, 3, 6, 5)
    for frame in range(3):
        torch.testing.assert_close(out[:, :, frame], reader.read(maps[:, :, frame], context))


@pytest.mark.parametrize("shape", [(3, 2, 8), (3, 2, 3, 8), (4, 16), (1, 1, 1, 8, 8)])
def test_samples_that_no_trunk_reads_are_refused(shape):
    with pytest.raises(
        ValueError, match="shape must be .* with sides of at least 4 .* got"
    ) as error:
        trunk_for(shape, 8, 2)
    sentence(error)

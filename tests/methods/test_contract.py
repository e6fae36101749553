"""What every method promises, whatever it does inside: it helps, it repeats itself, and it is kept
as it is."""

from dataclasses import replace
from functools import cache

import pytest
import torch

from indis import Counted, RectifiedFlow, artifact, models, noise_from_seeds
from indis.evaluate import counted_nfe, score_pairs
from indis.methods import METHODS
from methods.cases import CASES
from problems import Bumpy
from small_cases import same_tensors, toy, toy_pairs

UNSEEN = range(5000, 5064)
# Held-out losses of these fits at commit 999ab87, and numbers of parameters.
BEFORE = {
    "indis": (0.029290, 745),
    "god": (0.029884, 9),
    "look": (0.020116, 892),
    "local": (0.018502, 1832),
    "spanlift": (0.047501, 890),
    "every-n": (0.031120, 949),
    "ld3": (0.0024422, 5),
    "dyweight": (0.0089627, 12),
    "ald3": (0.0018962, 643),
    "amed": (0.013958, 1270),
    "amed-plugin": (0.013221, 1291),
    "epd": (0.0081642, 16),
    "epd-plugin": (0.011352, 16),
    "adasde": (0.016329, 7),
    "gits": (0.043407, 0),
    "dmn": (0.0069721, 0),
    "ays": (0.034909, 0),
}
EVERY = pytest.mark.parametrize("name", list(METHODS))


def tune(name):
    method = CASES[name]
    process = method.tuning(toy(), toy_pairs(256), models.loss(method.loss))
    states = list(process.run())
    return process, states


@cache
def tuned(name):
    return tune(name)


def draw(sampler):
    with torch.no_grad():
        return sampler(toy(), noise_from_seeds(UNSEEN, toy().shape))


def test_every_method_has_a_case():
    assert set(CASES) == set(METHODS)


@EVERY
def test_it_beats_its_own_start_on_seeds_it_has_not_seen(name):
    unseen, loss = toy_pairs(256, first=5000), models.loss(CASES[name].loss)
    before = score_pairs(toy(), CASES[name].untrained(toy()), unseen, loss).heldout_loss
    assert score_pairs(toy(), tuned(name)[0].sampler, unseen, loss).heldout_loss < 0.97 * before


@EVERY
def test_a_fit_reaches_what_it_reached(name):
    """Initial weights of look and local are drawn in another order, so theirs differ by chance."""
    process, _ = tuned(name)
    loss, parameters = BEFORE[name]
    assert process.best == pytest.approx(loss, rel=0.05 if name in ("look", "local") else 0.01)
    if parameters:
        assert CASES[name].untrained(toy()).policy.parameter_count() == parameters


@EVERY
def test_it_counts_its_calls_and_says_how_many(name):
    sampler = tuned(name)[0].sampler
    assert counted_nfe(toy(), sampler) == sampler.nfe
    counter = Counted(toy())
    with torch.no_grad():
        sampler(counter, noise_from_seeds(range(3), toy().shape))
    assert counter.samples == 3 * sampler.nfe


@EVERY
def test_by_default_it_begins_at_pure_noise_where_a_flow_does(name):
    """But for those whose paper spreads the nodes in sigma / alpha; they say what would do."""
    problem = Bumpy(RectifiedFlow(1e-3, 1.0))
    method = METHODS[name](steps=3, **({"features": "answer"} if name.startswith("amed") else {}))
    noise = noise_from_seeds(UNSEEN, problem.shape)
    if method.grid == "vp_time:1":
        with pytest.raises(ValueError, match="take uniform or flow_shift"):
            method.untrained(problem)
        method = replace(method, grid="uniform")
    with torch.no_grad():
        assert bool(method.untrained(problem)(problem, noise).isfinite().all())


@EVERY
def test_it_repeats_itself(name):
    again = tune(name)[0].sampler
    assert same_tensors(
        dict(again.policy.state_dict()), dict(tuned(name)[0].sampler.policy.state_dict())
    )
    assert torch.equal(draw(again), draw(again))


@EVERY
def test_a_row_does_not_depend_on_its_batch(name):
    sampler = tuned(name)[0].sampler
    with torch.no_grad():
        alone = torch.cat(
            [sampler(toy(), noise_from_seeds([seed], toy().shape)) for seed in UNSEEN[:4]]
        )
    assert torch.allclose(alone, draw(sampler)[:4], atol=1e-5)


@EVERY
def test_it_comes_back_from_disk_with_the_same_bits(name, tmp_path):
    sampler = tuned(name)[0].sampler
    artifact.save(sampler, tmp_path / "a")
    back = artifact.load(tmp_path / "a")
    assert torch.equal(draw(back), draw(sampler))
    assert back.nfe == sampler.nfe


@EVERY
def test_progress_ends_where_it_said_it_would(name):
    _, states = tuned(name)
    assert states[-1].step == states[-1].iterations == len(states)
    assert states[-1].best == min(state.best for state in states)


def test_freedoms_are_what_a_method_learns_and_nothing_else():
    grid, midpoints, scaled = "tau", "midpoints+slope scales", "midpoints+time scales+slope scales"
    told = {name: method.freedoms for name, method in CASES.items()}
    all_of_phi, ours = "tau+dtau+gamma", ("indis", "god", "every-n")
    assert told == dict.fromkeys(ours, all_of_phi) | {
        "look": f"{all_of_phi}+weights",
        "local": f"{all_of_phi}+weights+local both",
        "ld3": "tau+dtau",
        "dyweight": "weights+time scales",
        "spanlift": "local free",
        "ald3": grid,
        "amed": midpoints,
        "amed-plugin": scaled,
        "epd": f"{scaled}+weights",
        "epd-plugin": f"{scaled}+weights",
        "adasde": f"{scaled}+churn",
        **dict.fromkeys(("gits", "dmn", "ays"), grid),
    }


@pytest.mark.parametrize(
    ("name", "changes", "freedoms"),
    [
        ("indis", {"dtau": 0.0, "gamma": 0.0}, "tau"),
        ("god", {"weights": 0.5}, "tau+dtau+gamma+weights"),
        ("ld3", {"shift_rounds": 0}, "tau"),
        ("ld3", {"win_rate": 0.0}, "tau"),
        ("adasde", {"churn": 0.0, "s_time": 0.0}, "midpoints+slope scales"),
    ],
)
def test_a_freedom_without_room_is_not_named(name, changes, freedoms):
    assert replace(CASES[name], **changes).freedoms == freedoms

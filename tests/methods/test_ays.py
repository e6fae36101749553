"""AYS: the published tables to the digit, the bound and its minimum for Gaussian data in closed
form, the search."""

import math
from itertools import pairwise

import pytest
import torch

from indis import (
    EDM,
    UNCONDITIONAL,
    Counted,
    DiscreteVP,
    Endpoints,
    Form,
    LinearVP,
    Recipe,
    RectifiedFlow,
    ScaledLinearVP,
    Wrapped,
    grids,
    losses,
)
from indis.methods import AYS
from indis.methods.ays import TABLES, denoised, halved, interval_bounds, sweeps
from problems import Gaussian, seeded
from small_cases import sentence, toy, toy_pairs

MODELS = {"sd15": DiscreteVP(), "sdxl": ScaledLinearVP(), "svd": EDM(0.002, 700.0)}
SPREAD = 0.5  # c of N(0, c^2 I)


def gaussian(schedule, native, dims=3):
    return Gaussian(schedule, native, mean=(0.0,) * dims, variance=(SPREAD**2,) * dims)


def from_data(problem, count):
    """Endpoints whose targets are true data."""
    noise, target = seeded(count, *problem.shape), SPREAD * seeded(count, *problem.shape, seed=1)
    return Endpoints(torch.arange(count), noise, target, UNCONDITIONAL)


def noise_levels(schedule, tau):
    return (-schedule.log_snr(tau[0])).exp()


def lemma(log_snr):
    """E |D_i - D_j|^2 a dimension for Gaussian data (Lemma 3.3): c^4 |1 / (s_i^2 + c^2) - 1 /
    (s_j^2 + c^2)|."""
    known = 1 / ((-2 * log_snr).exp() + SPREAD**2)
    return SPREAD**4 * (known[:, None] - known).abs()


def published(table, steps):
    method = AYS(table=table, steps=steps)
    return method.best(Gaussian(MODELS[table], Form.NOISE), toy_pairs(), losses.mse)


@pytest.mark.parametrize("table", list(TABLES))
def test_ten_steps_have_the_published_noise_levels(table):
    levels = noise_levels(MODELS[table], published(table, 10))
    assert torch.allclose(
        levels[1:-1], torch.tensor(TABLES[table][1:-1], dtype=torch.float64), rtol=1e-9
    )
    schedule = MODELS[table]
    assert published(table, 10)[0, [0, -1]].tolist() == [schedule.t_max, schedule.t_min]


@pytest.mark.parametrize(
    ("table", "times"),
    [
        ("sd15", [999, 850, 736, 645, 545, 455, 343, 233, 124, 24]),
        ("sdxl", [999, 845, 730, 587, 443, 310, 193, 116, 53, 13]),
    ],
)
def test_they_are_the_published_time_steps_of_stable_diffusion(table, times):
    tau = AYS(table=table, steps=10).best(
        Gaussian(DiscreteVP(), Form.NOISE), toy_pairs(), losses.mse
    )
    assert (tau[0, :-1] - torch.tensor(times)).abs().max() < 1.5


@pytest.mark.parametrize("table", list(TABLES))
def test_other_numbers_of_steps_interpolate_the_logarithm_over_the_index(table):
    levels = torch.tensor(TABLES[table], dtype=torch.float64)
    double, half = (noise_levels(MODELS[table], published(table, n)) for n in (20, 5))
    assert torch.allclose(double[2:-1:2], levels[1:-1], rtol=1e-9)
    middles = (levels[1:-2] * levels[2:-1]).sqrt()
    assert torch.allclose(double[3:-2:2], middles, rtol=1e-9)
    assert torch.allclose(half[1:-1], levels[2:-2:2], rtol=1e-9)
    assert published(table, 1).shape == (1, 2)


def test_a_table_is_refused_for_a_model_with_other_noise_levels():
    with pytest.raises(ValueError) as error:
        AYS(table="sd15").best(Gaussian(EDM(), Form.NOISE), toy_pairs(), losses.mse)
    words = ("'sd15'", "14.615", "0.029", "80 to 0.002", "sd15, sdxl, svd", "'optimise'")
    assert all(word in sentence(error) for word in words)


@pytest.mark.parametrize(
    ("schedule", "native"),
    [
        (EDM(0.05, 20.0), Form.NOISE),
        (EDM(0.05, 20.0), Form.DATA),
        (LinearVP(), Form.NOISE),
        (RectifiedFlow(0.05, 1.0), Form.VELOCITY),
    ],
    ids=["edm noise", "edm data", "vp", "flow from pure noise"],
)
def test_denoised_samples_change_along_the_forward_path_as_the_lemma_says(schedule, native):
    problem = gaussian(schedule, native, dims=8)
    tau = grids.log_snr(schedule, 6)[0]
    answers = (
        denoised(problem, from_data(problem, 4000), tau, torch.Generator().manual_seed(0)) / 8**0.5
    )
    change = (answers[:, None] - answers).square().sum(-1).mean(-1)
    assert torch.allclose(change, lemma(schedule.log_snr(tau)), rtol=0.06, atol=1e-5)


def test_the_bound_of_an_interval_is_the_integral_of_the_paper():
    # int_a^b t^-3 (1 / (t^2 + c^2) - 1 / (b^2 + c^2)) dt, with v = t^2 and its antiderivative
    schedule = EDM(0.05, 20.0)
    log_snr = schedule.log_snr(grids.log_snr(schedule, 400)[0])
    bounds = interval_bounds(lemma(log_snr), log_snr)
    v, c = (-2 * log_snr).exp(), SPREAD**2
    inner = ((v + c).log() - v.log()) / c**2 - 1 / (c * v)
    for i, j in ((0, 400), (0, 100), (150, 300), (390, 400)):
        exact = c**2 / 2 * (inner[i] - inner[j] - (1 / v[j] - 1 / v[i]) / (v[i] + c))
        assert bounds[i, j].item() == pytest.approx(exact.item(), rel=5e-3)


def test_the_search_ends_where_the_bound_of_gaussian_data_is_least():
    # Setting the slope of the two bounds around a node to zero gives a quadratic equation for its v
    # = t^2.
    schedule = EDM(0.05, 20.0)
    fine = grids.log_snr(schedule, 400)[0]
    log_snr = schedule.log_snr(fine)
    cost = interval_bounds(lemma(log_snr), log_snr).tolist()
    *_, path = sweeps(cost, [0, 60, 180, 320, 400], reach=5, gap=1)
    v, c = (-2 * log_snr[path]).exp().tolist(), SPREAD**2
    for before, own, after in zip(v, v[1:], v[2:], strict=False):
        k, curve = before / (before + c), 1 / after + 1 / (before + c)
        best = (k + (k**2 + c * k * curve) ** 0.5) / curve
        assert own == pytest.approx(best, rel=0.08)  # two cells of the fine grid are 6 %


def test_every_sweep_lowers_the_bound_and_the_last_leaves_no_better_place():
    log_snr = torch.linspace(-3, 3, 61, dtype=torch.float64)
    cost = interval_bounds(lemma(log_snr) + 1e-3 * seeded(61, 61).abs(), log_snr).tolist()
    paths = list(sweeps(cost, [0, 4, 8, 12, 60], reach=4, gap=2))
    totals = [sum(cost[a][b] for a, b in pairwise(path)) for path in paths]
    assert len(paths) > 4 and all(later < earlier for earlier, later in pairwise(totals))
    assert all(b - a >= 2 for path in paths for a, b in pairwise(path))
    last = paths[-1]
    for i in range(1, 4):
        for place in range(
            max(last[i - 1] + 2, last[i] - 4), min(last[i + 1] - 2, last[i] + 4) + 1
        ):
            moved = [*last[:i], place, *last[i + 1 :]]
            assert sum(cost[a][b] for a, b in pairwise(moved)) >= totals[-1]


def test_a_sweep_moves_no_node_farther_than_its_reach():
    cost = seeded(41, 41).abs().cumsum(1).tolist()
    paths = list(sweeps(cost, [0, 10, 20, 30, 40], reach=3, gap=1))
    assert max(abs(a - b) for p, q in pairwise(paths) for a, b in zip(p, q, strict=True)) == 3


def test_halving_keeps_nodes_and_puts_the_best_one_into_every_interval():
    cost = seeded(41, 41).abs().cumsum(1).tolist()
    once, twice = (halved(cost, [0, 8, 21, 40], times) for times in (1, 2))
    assert (
        once[::2] == [0, 8, 21, 40] and len(twice) == 13 and all(b > a for a, b in pairwise(twice))
    )
    for a, middle, b in zip(once[::2], once[1::2], once[2::2], strict=False):
        assert middle == min(range(a + 1, b), key=lambda p: cost[a][p] + cost[p][b])
    assert halved(cost, [0, 8, 40], 0) == [0, 8, 40]


def judged(method, loss, monkeypatch):
    """The grid that is found, all grids that were tried, and what each of them scores."""
    tried, on = [], AYS.on
    monkeypatch.setattr(AYS, "on", lambda self, tau: tried.append(tau) or on(self, tau))
    data = toy_pairs()[: method.samples]
    found = method.best(toy(), data, loss)
    monkeypatch.undo()
    with torch.no_grad():
        return (
            found,
            tried,
            [loss(method.on(tau)(toy(), data.noise), data.target).mean().item() for tau in tried],
        )


SMALL = {"grid": "uniform", "solver": "euler", "steps": 3, "samples": 64, "fine": 80}


def test_it_stops_at_the_grid_whose_samples_are_nearest_to_the_teachers(monkeypatch):
    found, tried, scores = judged(AYS(**SMALL), losses.squared_distance, monkeypatch)
    best = scores.index(min(scores))
    assert 0 < best < len(scores) - 1, "neither the start nor the least bound is best"
    assert torch.equal(found, tried[best])
    worst, _, _ = judged(AYS(**SMALL), lambda a, b: -losses.squared_distance(a, b), monkeypatch)
    assert torch.equal(worst, tried[scores.index(max(scores))])


def test_the_search_begins_at_the_heuristic_grid(monkeypatch):
    for grid in ("uniform", "polynomial:7"):
        method = AYS(
            **(SMALL | {"grid": grid, "steps": 10, "fine": 400, "halvings": 0, "samples": 2})
        )
        _, tried, _ = judged(method, losses.squared_distance, monkeypatch)
        levels = [
            toy().schedule.log_snr(tau) for tau in (tried[0], grids.named(grid)(toy().schedule, 10))
        ]
        cell = (levels[0][0, -1] - levels[0][0, 0]) / 400
        assert (levels[0] - levels[1]).abs().max() <= 0.51 * cell


def test_the_seed_decides():
    grid = [
        AYS(**SMALL, recipe=Recipe(seed=s)).best(toy(), toy_pairs(), losses.mse) for s in (0, 0, 1)
    ]
    assert torch.equal(grid[0], grid[1]) and not torch.equal(grid[0], grid[2])


def test_defaults_ask_for_fewer_than_two_thousand_batches_at_five_steps():
    counted = Counted(gaussian(EDM(), Form.NOISE))
    AYS(steps=5).best(counted, from_data(counted, 300), losses.mse)
    assert 241 * 4 < counted.calls < 2000


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"table": "flux"}, ["table", "optimise", "sd15, sdxl, svd", "'flux'"]),
        ({"intervals": 1}, ["intervals", "at least 2", "1"]),
        ({"halvings": -1}, ["halvings", "at least 0", "-1"]),
        ({"candidates": 2}, ["candidates", "at least 3", "2"]),
        ({"candidates": 4}, ["candidates must be odd", "got 4"]),
        ({"samples": 0}, ["samples", "at least 1", "0"]),
        ({"fine": 39}, ["fine", "at least 40", "39"]),
    ],
)
def test_bad_input_is_named_with_what_is_accepted(options, words):
    with pytest.raises(ValueError) as error:
        AYS(**options)
    assert all(word in sentence(error) for word in words)


@pytest.mark.parametrize(
    ("problem", "words"),
    [
        (Gaussian(RectifiedFlow(0.0, 0.99), Form.VELOCITY), ["sigma(t_min) > 0", "t_min = 0"]),
        (Gaussian(RectifiedFlow(0.01, 1.0), Form.NOISE), ["finite", "at all times"]),
    ],
    ids=["no noise at the end", "no signal in noise form"],
)
def test_a_bound_that_is_not_finite_is_refused(problem, words):
    with pytest.raises(ValueError) as error:
        AYS().best(problem, from_data(problem, 4), losses.mse)
    assert all(word in sentence(error) for word in words)


@pytest.mark.parametrize("until", [0.05, 0.5, 0.9])
def test_a_denoised_sample_that_is_not_finite_is_refused_wherever_it_is(until):
    """Also within the path: such a node would be avoided without a word."""
    plain = Gaussian(RectifiedFlow(0.01, 0.99), Form.VELOCITY)

    def broken(x, t, condition):
        answer = plain(x, t, condition)
        return torch.where((t > until)[:, None], answer, math.nan)

    problem = Wrapped(broken, plain.schedule, plain.shape, Form.VELOCITY)
    with pytest.raises(ValueError, match="needs a finite denoised sample at all times") as error:
        AYS(fine=40).best(problem, from_data(plain, 4), losses.mse)
    sentence(error)


def test_the_tightest_fine_grid_still_has_room_for_every_node():
    method = AYS(**(SMALL | {"steps": 12, "fine": 40}))
    tau = method.best(toy(), toy_pairs(), losses.mse)
    assert bool((tau.diff(dim=1) < 0).all())

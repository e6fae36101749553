"""GITS against plain loops: what a jump costs, which path is cheapest, which node the analytic step
gets."""

from itertools import combinations

import pytest
import torch

from indis import (
    EDM,
    UNCONDITIONAL,
    Endpoints,
    Form,
    LinearVP,
    Recipe,
    RectifiedFlow,
    Sampler,
    grids,
    losses,
    solvers,
    trajectory,
)
from indis.methods import GITS
from indis.methods.gits import METRICS, cost_matrix, follow, shortest_path
from indis.plan import Discretization
from indis.policies import Fixed
from problems import Bumpy, Gaussian, GoldenMixture, seeded
from small_cases import sentence

FLOW = RectifiedFlow(0.02, 0.95)


def noises(problem, count=12):
    noise = seeded(count, *problem.shape)
    return Endpoints(torch.arange(count), noise, torch.zeros_like(noise), UNCONDITIONAL)


def teacher_states(problem, data, tau, solver):
    """x and t at every node, by the public loop."""
    x = data.noise * problem.schedule.sigma(tau[0, 0])
    later = trajectory(problem, x, Discretization.plain(tau), solvers.named(solver))
    return [x, *(state.x for state in later)], tau[0].tolist()


def plain_miss(metric, jump, state, first, last):
    """One sample, one jump."""
    if metric == "l1":
        return sum(abs(a - b) for a, b in zip(jump.tolist(), state.tolist(), strict=True))
    if metric == "l2":
        return ((jump - state) @ (jump - state)).sqrt().item()
    unit = (last - first) / (last - first).norm()
    heights = [(v - first - ((v - first) @ unit) * unit).norm() for v in (jump, state)]
    return (heights[0] - heights[1]).item()


def plain_costs(problem, data, tau, solver, metric):
    """cost[i][j] of x_i + (t_j - t_i) d_i, where time is the clock: EDM in noise form, flows in
    velocity form."""
    states, times = teacher_states(problem, data, tau, solver)
    costs = {}
    for i, j in combinations(range(len(times)), 2):
        slope = problem(
            states[i], torch.full((len(data),), times[i], dtype=torch.float64), UNCONDITIONAL
        )
        jumps = states[i] + (times[j] - times[i]) * slope
        rows = zip(jumps, states[j], states[0], states[-1], strict=True)
        costs[i, j] = sum(plain_miss(metric, *row) for row in rows) / len(data)
    return costs


def cheapest(costs, last, steps, coeff, first=1):
    """Of all subsets of inner nodes."""

    def price(path):
        return sum(
            coeff**k * costs[jump] for k, jump in enumerate(zip(path, path[1:], strict=False))
        )

    paths = ([0, *inner, last] for inner in combinations(range(1, last), steps - 1))
    return min((p for p in paths if p[1] >= first), key=price)


def upper(costs, size):
    matrix = torch.full((size, size), torch.inf, dtype=torch.float64)
    for (i, j), value in costs.items():
        matrix[i, j] = value
    return matrix


@pytest.mark.parametrize("metric", list(METRICS))
@pytest.mark.parametrize(
    "problem", [GoldenMixture(), Bumpy(FLOW)], ids=["noise form of EDM", "velocity form of a flow"]
)
def test_a_jump_costs_what_the_plain_formula_says(problem, metric):
    data, solver = noises(problem), "ipndm:4"
    tau = grids.polynomial(problem.schedule, 7)
    cost = cost_matrix(follow(problem, data, tau, solvers.named(solver)), metric)
    plain = upper(plain_costs(problem, data, tau, solver, metric), 8)
    assert torch.allclose(cost, plain, rtol=1e-6, atol=1e-8)


def test_a_jump_to_the_next_node_of_an_euler_teacher_is_free():
    problem = GoldenMixture()
    run = follow(
        problem, noises(problem), grids.polynomial(problem.schedule, 6), solvers.named("euler")
    )
    for metric in METRICS:
        cost = cost_matrix(run, metric)
        assert cost.diagonal(1).abs().max() < 1e-9 < cost[0, 2]


def test_noise_form_is_measured_in_the_variables_of_vp_and_edm_alike():
    vp = LinearVP()
    ends = (-vp.log_snr(torch.tensor([vp.t_min, vp.t_max], dtype=torch.float64))).exp().tolist()
    problems = [Gaussian(vp, Form.NOISE), Gaussian(EDM(*ends), Form.NOISE)]
    costs = []
    for problem in problems:
        run = follow(
            problem,
            noises(problem),
            grids.polynomial(problem.schedule, 8),
            solvers.named("ipndm:4"),
        )
        costs.append(cost_matrix(run, "l2"))
    assert torch.allclose(*costs, rtol=1e-6)


def test_a_denoiser_that_answers_in_data_form_is_measured_in_noise_form():
    costs = []
    for native in (Form.DATA, Form.NOISE):
        problem = Gaussian(EDM(), native)
        run = follow(problem, noises(problem), grids.polynomial(EDM(), 8), solvers.named("ipndm:4"))
        costs.append(cost_matrix(run, "dev"))
    assert torch.allclose(*costs, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("metric", list(METRICS))
@pytest.mark.parametrize("coeff", [0.8, 1.15])
@pytest.mark.parametrize("steps", [1, 2, 3, 5, 7])
def test_its_grid_is_the_cheapest_of_all_subsets_of_the_teachers(metric, coeff, steps):
    problem = GoldenMixture()
    data = noises(problem)
    method = GITS(steps=steps, metric=metric, coeff=coeff, teacher_steps=7)
    tau = grids.polynomial(problem.schedule, 7)
    best = cheapest(plain_costs(problem, data, tau, "ipndm:4", metric), 7, steps, coeff)
    assert torch.equal(method.best(problem, data, losses.mse), tau[:, best])


@pytest.mark.parametrize("first", [1, 2, 4])
@pytest.mark.parametrize("coeff", [0.5, 1.0, 1.3])
def test_the_cheapest_path_is_found_among_costs_of_either_sign(coeff, first):
    for seed in range(5):
        values = seeded(9, 9, seed=seed)
        costs = {(i, j): values[i, j].item() for i, j in combinations(range(9), 2)}
        for steps in range(2, 6):
            assert shortest_path(upper(costs, 9), steps, coeff, first) == cheapest(
                costs, 8, steps, coeff, first
            )


def test_the_coefficient_moves_nodes_to_where_costs_count():
    costs = {(0, 1): 1.0, (1, 3): 2.0, (0, 2): 2.2, (2, 3): 1.0, (0, 3): 9.0, (1, 2): 0.0}
    assert shortest_path(upper(costs, 4), 2, 0.5) == [0, 1, 3]
    assert shortest_path(upper(costs, 4), 2, 1.5) == [0, 2, 3]


@pytest.mark.parametrize("solver", ["euler", "dpmpp:2"])
def test_the_analytic_step_gets_the_node_that_ends_nearest_to_the_teacher(solver):
    problem = GoldenMixture()
    data = noises(problem)
    method = GITS(steps=4, analytic_first=True, solver=solver, teacher_steps=24)
    tau = grids.polynomial(problem.schedule, 24)
    costs = plain_costs(problem, data, tau, "ipndm:4", "dev")
    path = cheapest(costs, 24, 3, 1.15, first=2)
    end = teacher_states(problem, data, tau, "ipndm:4")[0][-1]

    def miss(k):
        sampler = Sampler(
            Fixed(tau[:, [0, k, *path[1:]]]), solvers.named(solver), analytic_first=True
        )
        return (sampler(problem, data.noise) - end).norm(dim=1).mean()

    assert len(range(1, path[1])) > 1
    best = min(range(1, path[1]), key=miss)
    assert torch.equal(method.best(problem, data, losses.mse), tau[:, [0, best, *path[1:]]])
    assert method.untrained(problem).nfe == 3


def test_the_analytic_step_leaves_room_for_its_node():
    problem = GoldenMixture()
    data, tau = noises(problem), grids.polynomial(problem.schedule, 4)
    assert cheapest(plain_costs(problem, data, tau, "ipndm:4", "l2"), 4, 3, 0.2)[1] == 1
    method = GITS(steps=4, analytic_first=True, teacher_steps=4, metric="l2", coeff=0.2)
    assert torch.equal(method.best(problem, data, losses.mse), tau)


def test_neither_targets_nor_batches_nor_samples_beyond_the_first_change_the_grid():
    problem = GoldenMixture()
    data = noises(problem, 20)
    grid = GITS(samples=10).best(problem, data, losses.mse)
    moved = Endpoints(data.seeds, data.noise, data.target + 1, data.condition)
    assert torch.equal(GITS(samples=10).best(problem, moved, losses.mse), grid)
    assert torch.equal(GITS(samples=10).best(problem, data[:10], losses.mse), grid)
    small = GITS(samples=10, recipe=Recipe(batch=9)).best(problem, data, losses.mse)
    assert torch.equal(small, grid)
    assert not torch.equal(GITS(samples=1).best(problem, data, losses.mse), grid)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"metric": "l3"}, ["metric", "l1, l2 or dev", "'l3'"]),
        ({"coeff": 0.0}, ["coeff", "positive", "0.0"]),
        ({"samples": 0}, ["samples", "at least 1", "0"]),
        ({"steps": 9, "teacher_steps": 8}, ["steps", "[1, 8]", "9"]),
        ({"steps": 1, "analytic_first": True}, ["steps", "[2, 60]", "1"]),
        ({"teacher_solver": "magic"}, ["solver", "euler", "'magic'"]),
    ],
)
def test_bad_input_is_named_with_what_is_accepted(options, words):
    with pytest.raises(ValueError) as error:
        GITS(**options)
    assert all(word in sentence(error) for word in words)


def test_a_trajectory_that_is_not_finite_is_refused():
    class Broken(GoldenMixture):
        def __call__(self, x, t, condition=None):
            return super().__call__(x, t, condition) / 0

    with pytest.raises(ValueError) as error:
        GITS(grid="log_snr").best(Broken(), noises(GoldenMixture()), losses.mse)
    assert "finite" in sentence(error)


def test_a_start_is_refused():
    problem = GoldenMixture()
    with pytest.raises(ValueError) as error:
        GITS().tuning(problem, noises(problem), losses.mse, start=GITS().untrained(problem))
    assert "GITS" in sentence(error)

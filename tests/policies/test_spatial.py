"""Corrections of places: no call more, the base solver at first, and by hand what each kind
adds."""

import pytest
import torch

from indis import (
    IPNDM,
    UNCONDITIONAL,
    Bounds,
    Counted,
    Euler,
    Fixed,
    Recipe,
    RectifiedFlow,
    Sampler,
    grids,
    prior,
    solvers,
)
from indis.denoise import Form, convert
from indis.methods import Local
from indis.policies import LearnedPolicy
from indis.policies.spatial import SpatialCorrector
from learned import closed
from problems import Bumpy, GoldenMixture, seeded
from small_cases import TinyClasses, sentence

POINTS, FLOW, PICTURES = GoldenMixture(), Bumpy(RectifiedFlow()), TinyClasses()
PROBLEMS = pytest.mark.parametrize(
    "problem", [POINTS, FLOW, PICTURES], ids=["points", "flow", "pictures"]
)
KINDS = pytest.mark.parametrize("picture", ["both", "weights", "free"])
STEPS = 4


def policy_for(problem, picture="both", *, seed=None, steps=STEPS, condition_dim=0):
    """A policy whose last layers are zero, or those of the places random under ``seed``."""
    base = grids.named("uniform" if problem is FLOW else "polynomial")(problem.schedule, steps)
    torch.manual_seed(seed or 0)
    network = {
        "shape": problem.shape,
        "width": 16,
        "picture": picture,
        "picture_width": 8,
        "condition_dim": condition_dim,
    }
    bounds = Bounds.natural(problem.schedule)
    policy = closed(base, problem.schedule, bounds, native=problem.native, **network)
    if seed is not None:
        torch.nn.init.normal_(policy.corrector.leave.weight, std=0.3)
        torch.nn.init.normal_(policy.corrector.leave.bias, std=0.3)
    return policy


def asked(problem, count):
    return PICTURES.condition(range(count)) if problem is PICTURES else UNCONDITIONAL


def draw(problem, sampler, noise):
    return sampler(problem, noise, asked(problem, len(noise)))


def by_hand(problem, noise, extra):
    """Euler in the noise frame: each step goes to ``extra(k, state, data)`` more than was denoised,
    newest first."""
    schedule, x, data = problem.schedule, prior(problem.schedule, noise), []
    condition = asked(problem, len(noise))
    tau = grids.named("uniform" if problem is FLOW else "polynomial")(schedule, STEPS)[0]
    for k in range(STEPS):
        t, then = tau[k : k + 1], tau[k + 1 : k + 2]
        answer = problem(x, t.expand(len(x)), condition)
        alpha, sigma, alphas, sigmas = (
            float(v)
            for v in (
                schedule.alpha(t),
                schedule.sigma(t),
                schedule.alpha(then),
                schedule.sigma(then),
            )
        )
        data.insert(0, convert(answer, problem.native, Form.DATA, x=x, schedule=schedule, t=t))
        eps = convert(answer, problem.native, Form.NOISE, x=x, schedule=schedule, t=t)
        plain = alphas * data[0] + sigmas * eps
        x = plain + (alphas - alpha * sigmas / sigma) * extra(
            k, x / (alpha**2 + sigma**2) ** 0.5, data
        )
    return x


@PROBLEMS
@KINDS
def test_untrained_it_is_its_base_solver_bit_for_bit(problem, picture):
    noise, policy = (
        seeded(6, *problem.shape, seed=1, dtype=torch.float32),
        policy_for(problem, picture),
    )
    plain = draw(problem, Sampler(Fixed(policy.base), IPNDM(3)), noise)
    assert torch.equal(draw(problem, Sampler(policy, IPNDM(3)), noise), plain)


@pytest.mark.parametrize(
    "spec", ["euler", "heun", "ipndm:4", "adams_bashforth:3", "dpmpp:3", "unipc:3:bh1"]
)
def test_every_solver_goes_as_much_further_whatever_the_schedule_s_end(spec):
    """A flow ends at pure data, where a solver of data predictions carries nothing of the state
    over."""
    solver, noise = solvers.named(spec), seeded(6, *FLOW.shape, seed=1)
    policy = policy_for(FLOW, "free", steps=1)
    plain = draw(FLOW, Sampler(Fixed(policy.base), solver), noise)
    torch.testing.assert_close(draw(FLOW, Sampler(policy, solver), noise), plain, rtol=0, atol=0)
    torch.nn.init.constant_(policy.corrector.leave.bias, 0.25)
    # From t = 1, where alpha is 0, all of what is added arrives.
    further = plain + 0.25
    if spec == "heun":  # whose trial is there already
        x, t = prior(FLOW.schedule, noise), torch.zeros(6, dtype=torch.float64)
        trial = FLOW(x - FLOW(x, t + 1, UNCONDITIONAL) + 0.25, t, UNCONDITIONAL)
        further = x - (FLOW(x, t + 1, UNCONDITIONAL) + trial) / 2 + 0.25
    torch.testing.assert_close(
        draw(FLOW, Sampler(policy, solver), noise), further, rtol=1e-6, atol=1e-6
    )


@PROBLEMS
@KINDS
def test_it_costs_no_call_and_changes_the_sample(problem, picture):
    noise, policy = (
        seeded(5, *problem.shape, dtype=torch.float32),
        policy_for(problem, picture, seed=1),
    )
    counter, plain = Counted(problem), draw(problem, Sampler(Fixed(policy.base), IPNDM(3)), noise)
    moved = Sampler(policy, IPNDM(3))(counter, noise, asked(problem, 5))
    assert counter.calls == STEPS
    assert float((moved - plain).detach().abs().mean()) > 1e-3


@PROBLEMS
def test_weights_of_places_move_the_step_by_what_the_denoised_sample_has_moved(problem):
    policy, noise = policy_for(problem, "weights"), seeded(3, *problem.shape, seed=2)
    torch.nn.init.constant_(policy.corrector.leave.bias, 0.4)
    m = torch.tanh(torch.tensor(0.4)).double()

    def extra(k, state, data):
        differences = [a - b for a, b in zip(data, data[1:], strict=False)][:2]
        return sum((m * d for d in differences), torch.zeros_like(state))

    expected = by_hand(problem, noise, extra)
    torch.testing.assert_close(
        draw(problem, Sampler(policy, Euler()), noise), expected, rtol=1e-6, atol=1e-6
    )


@PROBLEMS
def test_a_free_correction_is_what_the_network_says_of_state_and_denoised_samples(problem):
    policy, noise = policy_for(problem, "free", seed=3), seeded(3, *problem.shape, seed=2)

    def extra(k, state, data):
        moved = data[0] - data[1] if k else torch.zeros_like(state)
        number = torch.eye(STEPS)[k].expand(3, STEPS)
        return policy.corrector.read(
            torch.cat([state, data[0], moved], dim=1).float(), number
        ).double()

    expected = by_hand(problem, noise, extra)
    torch.testing.assert_close(
        draw(problem, Sampler(policy, Euler()), noise), expected, rtol=1e-5, atol=1e-5
    )


def test_both_are_the_sum_of_the_two():
    both, state = policy_for(PICTURES, seed=5), seeded(2, *PICTURES.shape, seed=1)
    data = [seeded(2, *PICTURES.shape, seed=i) for i in (2, 3, 4)]
    parts, start = [], 0
    for picture, count in (("weights", 2), ("free", 1)):
        one = policy_for(PICTURES, picture)
        rows = slice(start * 4, (start + count) * 4)  # four pixels an output
        own = {
            name: v[rows] if name.startswith("corrector.leave") else v
            for name, v in both.state_dict().items()
        }
        one.load_state_dict(own)
        parts.append(one.corrector(2, state, data, None))
        start += count
    torch.testing.assert_close(both.corrector(2, state, data, None), sum(parts))


@KINDS
def test_a_row_is_alone_what_it_is_in_a_batch_and_its_class_matters(picture):
    policy = policy_for(PICTURES, picture, seed=4, condition_dim=10)
    sampler, noise = Sampler(policy, IPNDM(3)), seeded(5, *PICTURES.shape, seed=9)
    together = sampler(PICTURES, noise, PICTURES.condition(range(5)))
    alone = torch.cat(
        [sampler(PICTURES, noise[i : i + 1], PICTURES.condition([i])) for i in range(5)]
    )
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)
    data, state = [seeded(2, 1, 4, 4, seed=i) for i in (1, 2, 3)], seeded(2, 1, 4, 4)
    labels = [torch.eye(10)[[i, i]] for i in (2, 7)]
    one, other = (policy.corrector(2, state, data, label) for label in labels)
    assert float((one - other).detach().abs().max()) > 1e-4


@KINDS
@PROBLEMS
def test_gradients_reach_every_parameter(problem, picture):
    policy = policy_for(problem, picture, seed=10)
    torch.nn.init.normal_(policy.logits.head, std=0.3)
    draw(
        problem, Sampler(policy, IPNDM(3)), seeded(6, *problem.shape, seed=11)
    ).square().sum().backward()
    for name, parameter in policy.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name


def test_each_parameter_has_one_rate_and_places_their_own():
    policy = policy_for(PICTURES)
    groups = policy.parameter_groups()
    grouped = [id(p) for group in groups.values() for p in group]
    assert sorted(grouped) == sorted(map(id, policy.parameters()))
    optimizer = Recipe(lr=0.3).optimizer(policy, policy.shape)
    rates = {id(p): own["rate"] for own in optimizer.param_groups for p in own["params"]}
    assert rates[id(policy.corrector.enter.weight)] == 0.02
    assert rates[id(policy.logits.head)] == rates[id(policy.encoder.mix.weight)] == 0.007
    assert rates[id(policy.logits.table)] == 1.0


def test_it_plans_once_and_corrects_at_every_node(monkeypatch):
    planned, corrected = [], []
    remaining, correct = LearnedPolicy.remaining, SpatialCorrector.forward

    def noted(log, call):
        return lambda self, k, *args, **named: log.append(k) or call(self, k, *args, **named)

    monkeypatch.setattr(LearnedPolicy, "remaining", noted(planned, remaining))
    monkeypatch.setattr(SpatialCorrector, "forward", noted(corrected, correct))
    for replan, plans in (("first", [0]), ("every", [0, 1, 2])):
        sampler = Local(steps=3, width=8, replan=replan, analytic_first=True).untrained(PICTURES)
        counted = Counted(PICTURES)
        sampler(counted, seeded(2, *PICTURES.shape), PICTURES.condition(range(2)))
        assert (planned, corrected, counted.calls) == (plans, [0, 1, 2], 2)
        planned.clear(), corrected.clear()


@pytest.mark.parametrize("size", [(5, 7), (4, 7), (6, 6)])
def test_pictures_of_any_size_have_an_output_for_each_place(size):
    reader = SpatialCorrector((2, *size), 4, 0, "both", 8)
    torch.nn.init.normal_(reader.leave.weight)
    out = reader.read(torch.randn(2, 6, *size), torch.zeros(2, 4))
    assert out.shape == (2, 4, *size) and float(out.detach().std()) > 0


def test_bad_settings_are_refused():
    for make, words in (
        (
            lambda: Local(picture="all"),
            "picture must be none, weights, free or both, got 'all'",
        ),
        (lambda: Local(picture_width=0), "picture_width must be at least 1, got 0"),
        (lambda: Local(reads="noise"), "reads must be answers to correct places, got 'noise'"),
    ):
        with pytest.raises(ValueError, match=words) as error:
            make()
        sentence(error)
    assert Local().freedoms == "tau+dtau+gamma+weights+local both"

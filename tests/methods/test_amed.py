"""AMED-Solver and AMED-Plugin: the published steps, what the network reads, and when it reads
nothing."""

from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F

from indis import Counted, Discretization, Form, Recipe, Sampler, grids, models, prior, solve
from indis.methods import AMED, METHODS, AMEDPlugin
from indis.methods.amed import MidpointPredictor, pooled
from indis.solvers import DPMSolverPP
from methods.published import SCHEDULE, adams, first_slope, problem
from problems import Gaussian, seeded
from small_cases import TinyClasses, sentence, toy

NOISE = seeded(4, 3, seed=9)


class Thinking(Gaussian):
    """A Gaussian's denoiser with features of its own: a function of the state, times ``mood``."""

    def __init__(self, native=Form.NOISE, mood=1.0):
        super().__init__(SCHEDULE, native)
        self.mood, self.reads = mood, 0

    def with_features(self, x, t, condition):
        self.reads += 1
        thought = [x.detach().sum(1), t.expand(len(x)).to(x.dtype)]
        return self(x, t, condition), self.mood * torch.stack(thought, dim=1)


def learned(config, denoiser=None, seed=4):
    """A sampler whose head is not zero, as after some training."""
    sampler = config.untrained(denoiser or Thinking())
    with torch.no_grad():
        sampler.policy.head.weight.copy_(seeded(*sampler.policy.head.weight.shape, seed=seed))
    return sampler


def column(values):
    return tuple(v.detach()[:, None] for v in values)


def decided(policy, x, t, s, *, analytic):
    """r, s_dir, s_time for each row from the features of the evaluation at (x, t)."""
    features = (
        torch.zeros(len(x), 2) if analytic else torch.stack([x.sum(1), t.expand(len(x))], dim=1)
    )
    return column(policy.predict(features, t[None], s[None]))


def published_solver(policy, x, base, *, analytic):
    for n, (t, s) in enumerate(pairwise(base)):
        r, s_dir, s_time = decided(policy, x, t, s, analytic=analytic and n == 0)
        m = s**r * t ** (1 - r)
        inside = x + (m - t) * first_slope(x, t, analytic and n == 0)
        d = (inside - Gaussian(SCHEDULE, Form.DATA)(inside, (s_time * m)[:, 0], None)) / m
        x = x + s_dir * (s - t) * d
    return x


def published_plugin(policy, x, base, *, analytic, order):
    """Adams-Bashforth to the midpoint and again to the node; both slopes enter the history as they
    are."""
    history = []
    for n, (t, s) in enumerate(pairwise(base)):
        r, s_dir, s_time = decided(policy, x, t, s, analytic=analytic and n == 0)
        m = s**r * t ** (1 - r)
        history.insert(0, first_slope(x, t, analytic and n == 0))
        x = x + (m - t) * adams(history, order)
        history.insert(0, (x - Gaussian(SCHEDULE, Form.DATA)(x, (s_time * m)[:, 0], None)) / m)
        x = x + s_dir * (s - m) * adams(history, order)
    return x


@pytest.mark.parametrize("native", [Form.NOISE, Form.DATA])
@pytest.mark.parametrize("analytic", [False, True])
def test_the_solver_takes_the_published_step(analytic, native):
    denoiser = Thinking(native)
    sampler = learned(AMED(steps=3, analytic_first=analytic, s_dir=0.2, s_time=0.3), denoiser)
    base = grids.vp_time(SCHEDULE, 3)[0]
    expected = published_solver(sampler.policy, prior(SCHEDULE, NOISE), base, analytic=analytic)
    torch.testing.assert_close(sampler(denoiser, NOISE).detach(), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("order", [1, 3, 4])
@pytest.mark.parametrize("analytic", [False, True])
def test_the_plugin_takes_the_published_steps(analytic, order):
    sampler = learned(
        AMEDPlugin(solver=f"ipndm:{order}", steps=3, analytic_first=analytic, s_dir=0.2, s_time=0.3)
    )
    x, base = prior(SCHEDULE, NOISE), grids.polynomial(SCHEDULE, 3)[0]
    expected = published_plugin(sampler.policy, x, base, analytic=analytic, order=order)
    torch.testing.assert_close(
        sampler(Thinking(), NOISE).detach(), expected, rtol=1e-10, atol=1e-10
    )


def test_the_plugin_of_dpm_solver_pp_scales_the_second_of_its_two_steps():
    """First order, by hand: x goes to (s / m) x + s_dir (1 - s / m) D."""
    sampler = learned(
        AMEDPlugin(solver="dpmpp:1", steps=2, analytic_first=False, s_dir=0.2, s_time=0.3)
    )
    x, denoise = prior(SCHEDULE, NOISE), Gaussian(SCHEDULE, Form.DATA)
    for t, s in pairwise(grids.polynomial(SCHEDULE, 2)[0]):
        r, s_dir, s_time = decided(sampler.policy, x, t, s, analytic=False)
        m = s**r * t ** (1 - r)
        x = m / t * x + (1 - m / t) * denoise(x, t.expand(4), None)
        x = s / m * x + s_dir * (1 - s / m) * denoise(x, (s_time * m)[:, 0], None)
    torch.testing.assert_close(sampler(Thinking(), NOISE).detach(), x, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    "config", [AMED(steps=3), AMEDPlugin(steps=3), AMEDPlugin(steps=3, solver="dpmpp:2")]
)
def test_an_untrained_network_is_the_plain_solver_on_midpoints(config):
    sampler = config.untrained(Thinking())
    base = sampler.policy.base
    nodes = torch.cat(
        [
            torch.stack([base[:, :-1], (base[:, :-1] * base[:, 1:]).sqrt()], 2).flatten(1),
            base[:, -1:],
        ],
        1,
    )
    plain = solve(
        Thinking(),
        prior(SCHEDULE, NOISE),
        Discretization.plain(nodes),
        sampler.solver,
        analytic_first=True,
    )
    torch.testing.assert_close(sampler(Thinking(), NOISE).detach(), plain, rtol=1e-12, atol=1e-12)


def test_the_network_decides_from_the_features_of_the_evaluation_just_made():
    sampler = learned(AMED(steps=3))
    ends = [sampler(Thinking(mood=mood), NOISE).detach() for mood in (1.0, 1.0, -1.0)]
    assert torch.equal(ends[0], ends[1])
    assert float((ends[0] - ends[2]).abs().max()) > 1e-3


def test_each_sample_has_its_own_midpoints():
    sampler = learned(AMED(steps=3, analytic_first=False))
    plan, x = sampler.policy(NOISE), prior(SCHEDULE, NOISE)
    tau, _ = plan.start()
    answer, features = Thinking().with_features(x, tau.expand(4), None)
    midpoints = plan.decide(0, x, answer, features).tau
    assert midpoints.shape == (4,) and midpoints.unique().numel() == 4
    assert bool(
        (midpoints < sampler.policy.base[0, 0]).all()
        and (midpoints > sampler.policy.base[0, 1]).all()
    )


@pytest.mark.parametrize("config", [AMED(steps=3), AMEDPlugin(steps=3)])
def test_an_analytic_first_step_saves_a_call_and_reads_zeros(config):
    sampler, denoiser = learned(config), Thinking()
    counter = Counted(denoiser)
    sampler(counter, NOISE)
    assert counter.calls == sampler.nfe == sampler.depth == 5
    plan = sampler.policy(NOISE)
    first = plan.decide(0, NOISE, NOISE).tau.detach()  # where the answer is analytic
    torch.testing.assert_close(first, first[:1].expand(4), rtol=0, atol=0)
    _, features = denoiser.with_features(NOISE, torch.ones(4), None)
    moved = plan.decide(0, NOISE, NOISE, features).tau
    assert float((moved - first).detach().abs().max()) > 1e-3


def test_threads_that_share_a_sampler_and_a_denoiser_read_their_own_features():
    """Features come back with the answer, so no run reads those of another one's call."""
    toy_sampler = learned(AMED(steps=3), toy())
    noises = [seeded(8, 2, seed=s, dtype=torch.float32) for s in range(24)]
    with torch.no_grad():
        alone = [toy_sampler(toy(), noise) for noise in noises]
        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(lambda noise: draw(toy_sampler, noise), noises))
    wrong = sum(not torch.equal(a, b) for a, b in zip(alone, found, strict=True))
    assert wrong == 0


def draw(sampler, noise):
    with torch.no_grad():
        return sampler(toy(), noise)


def test_reading_the_features_costs_no_call():
    sampler, counter = learned(AMED(steps=3, analytic_first=False)), Counted(Thinking())
    sampler(counter, NOISE)
    assert (counter.calls, counter.samples, sampler.nfe) == (6, 24, 6)


def test_a_denoiser_without_a_bottleneck_is_told_what_would_do():
    for attempt in (AMED().untrained, lambda denoiser: learned(AMED())(denoiser, NOISE)):
        with pytest.raises(ValueError, match="with_features") as error:
            attempt(problem())
        sentence(error)


@pytest.mark.parametrize(
    "config", [AMED(steps=2, features="answer"), AMEDPlugin(steps=2, features="answer")]
)
def test_the_answer_itself_serves_any_denoiser(config):
    for denoiser in (TinyClasses(), problem()):
        sampler = learned(config, denoiser)
        noise = seeded(3, *denoiser.shape, seed=1, dtype=torch.float32)
        end = sampler(denoiser, noise, denoiser.condition([0, 1, 2])).detach()
        assert bool(end.isfinite().all())
        expected = sampler.policy.predict(
            pooled(noise), sampler.policy.base[:, 0], sampler.policy.base[:, 1]
        )[0]
        sampler.policy.analytic_first = False
        found = sampler.policy(noise).decide(0, noise, noise).tau.log()
        start, stop = sampler.policy.base[0, :2].log()
        torch.testing.assert_close(found, start + expected * (stop - start), rtol=1e-9, atol=1e-12)


def test_no_gradient_flows_into_the_features():
    policy = learned(AMED(steps=2, features="answer", analytic_first=False), problem()).policy
    answer, plan = NOISE.clone().requires_grad_(), policy(NOISE)
    plan.decide(0, NOISE, answer).tau.sum().backward()
    assert answer.grad is None
    assert bool((policy.head.weight.grad != 0).any())


def test_pooled_answers_are_at_most_sixty_four_numbers():
    picture = seeded(2, 3, 16, 16)
    cells = picture.mean(1).reshape(2, 8, 2, 8, 2).mean((2, 4)).flatten(1)
    torch.testing.assert_close(pooled(picture), cells)
    assert torch.equal(pooled(NOISE), NOISE)
    assert pooled(seeded(2, 5, 100)).shape == (2, 64)


def test_the_predictor_is_the_published_network():
    """Features -> 128 -> SiLU -> 4; sin and cos of each time at 1 ... 1e-4 -> 8 -> SiLU; 20 -> one
    number a head."""
    policy = learned(AMED(steps=3, s_dir=0.01, s_time=0.2)).policy
    features = seeded(4, 2, seed=1, dtype=torch.float32)
    start, stop = policy.base[:, 0], policy.base[:, 1]
    found = column(policy.predict(features, start, stop))
    code = F.linear(
        F.silu(F.linear(features, policy.code[0].weight, policy.code[0].bias)),
        policy.code[2].weight,
    )
    code = code + policy.code[2].bias
    parts = [code]
    for t in (start, stop):
        angles = t * (1 / 10_000) ** (torch.arange(4, dtype=torch.float64) / 3)
        waves = torch.cat([angles.sin(), angles.cos()]).float()
        parts.append(F.silu(policy.embedding(waves)).expand(4, 8))
    r, s_dir, s_time = policy.head(torch.cat(parts, 1)).detach().double().split(1, 1)
    expected = (
        1e-3 + (1 - 2e-3) * r.sigmoid(),
        0.99 + 0.02 * s_dir.sigmoid(),
        0.8 + 0.4 * s_time.sigmoid(),
    )
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
    assert (
        AMED(s_time=0.2).untrained(toy()).policy.parameter_count()
        == (4 * 128 + 128) + (128 * 4 + 4) + 72 + 3 * 21
    )


def test_features_of_another_size_are_refused():
    with pytest.raises(ValueError, match=r"features must be \(batch, 2\), got \(4, 3\)"):
        learned(AMED()).policy.predict(NOISE, *torch.ones(2, 1))


def test_gradients_reach_the_head_and_then_the_whole_network():
    untrained = AMED(steps=3, s_time=0.2).untrained(Thinking())
    untrained(Thinking(), NOISE).square().sum().backward()
    assert bool((untrained.policy.head.weight.grad != 0).any())
    sampler = learned(AMED(steps=3, s_time=0.2))
    sampler(Thinking(), NOISE).square().sum().backward()
    for name, parameter in sampler.policy.named_parameters():
        assert bool((parameter.grad != 0).any()), name


def test_initial_weights_follow_the_seed_and_leave_the_callers_generator_alone():
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    weights = [AMED().untrained(Thinking()).policy.code[0].weight]
    assert torch.equal(torch.rand(1), expected)
    weights += [
        AMED(recipe=Recipe(seed=seed)).untrained(Thinking()).policy.code[0].weight
        for seed in (0, 1)
    ]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_a_predictor_comes_back_from_its_description():
    sampler = learned(AMEDPlugin(steps=3, features="bottleneck", width=16))
    back = MidpointPredictor.rebuild(sampler.policy.describe(), sampler.policy.state_dict())
    again = Sampler(back, sampler.solver, sampler.analytic_first)
    assert torch.equal(again(Thinking(), NOISE), sampler(Thinking(), NOISE))


def test_checkpointing_a_network_with_a_bottleneck_changes_neither_values_nor_gradients():
    pytest.importorskip("diffusers")
    model = models.load("fashion")
    condition, noise = model.condition([0, 1]), seeded(2, 1, 28, 28, seed=2, dtype=torch.float32)
    sampler, results = learned(AMED(steps=2, analytic_first=False), model), []
    for checkpoint in (False, True):
        sampler.policy.zero_grad()
        end = sampler(model, noise, condition, recompute=checkpoint)
        end.square().mean().backward()
        results.append([end.detach(), *(p.grad.clone() for p in sampler.policy.parameters())])
    for plain, recomputed in zip(*results, strict=True):
        assert torch.equal(plain, recomputed)
    with torch.inference_mode():
        torch.testing.assert_close(
            sampler(model, noise, condition), results[0][0], rtol=1e-4, atol=1e-4
        )
    assert bool((results[0][1] != 0).any())


def test_names_mean_the_two_methods():
    assert METHODS["amed"]().solver == "midpoint"
    sampler = METHODS["amed-plugin"]().untrained(toy())
    assert (sampler.solver.order, sampler.policy.plugin) == (4, True)
    assert AMED.steps_for(5, analytic_first=True) == 3
    assert isinstance(AMEDPlugin(solver="dpmpp").untrained(toy()).solver, DPMSolverPP)


@pytest.mark.parametrize("solver", ["heun", "unipc", "midpoint:2", "midpoint:1:2"])
def test_solvers_that_it_cannot_instruct_are_refused(solver):
    with pytest.raises(ValueError, match="solver must be midpoint or a multistep one") as error:
        AMED(solver=solver)
    sentence(error)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"width": -1}, "width must be at least 1, got -1"),
        ({"width": 0}, "width must be at least 1, got 0"),
        ({"features": "foo"}, "features must be bottleneck or answer, got 'foo'"),
    ],
)
def test_a_network_that_cannot_be_built_is_refused_with_the_config(fields, message):
    for method in (AMED, AMEDPlugin):
        with pytest.raises(ValueError) as error:
            method(**fields)
        assert sentence(error) == message


def test_an_unknown_domain_of_midpoints_is_refused():
    with pytest.raises(ValueError) as error:
        AMED(domain="lambda").untrained(Thinking())
    assert sentence(error) == "domain must be time or log_snr, got 'lambda'"

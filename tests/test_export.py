"""A plan as a list of sigmas, what a list cannot say, and phi as a graph."""

import math

import pytest
import torch

from indis import EDM, DiscreteVP, Discretization, RectifiedFlow, artifact
from indis.export import export_phi, lost_in_sigmas, sigmas, unshift


def test_sigmas_of_a_variance_preserving_schedule_are_noise_over_signal():
    schedule = DiscreteVP()
    tau = torch.tensor([[999.0, 500.0, 10.0]], dtype=torch.float64)
    expected = schedule.sigma(tau) / schedule.alpha(tau)
    torch.testing.assert_close(sigmas(schedule, Discretization.plain(tau)), expected)


def test_a_plan_to_zero_noise_ends_at_sigma_zero():
    tau = torch.tensor([[80.0, 2.0, 0.0]], dtype=torch.float64)
    plan = Discretization.plain(tau, to_zero=True)
    torch.testing.assert_close(sigmas(EDM(), plan), tau)


def test_each_freedom_beyond_timesteps_is_named_as_lost():
    tau = torch.tensor([[1.0, 0.5, 0.0]], dtype=torch.float64)
    one, none = torch.ones(1, 2), torch.zeros(1, 2)
    plain = Discretization.plain(tau)
    assert lost_in_sigmas(plain, shared=True, analytic_first=False) == []
    for columns, name in (
        ((one * 0.1, one), "time shifts"),
        ((none, one * 0.9), "scales of the network's output"),
        ((none, one, torch.ones(1, 2, 3)), "corrected multistep weights"),
    ):
        plan = Discretization(tau, *columns)
        assert lost_in_sigmas(plan, shared=True, analytic_first=False) == [name]
    assert lost_in_sigmas(plain, shared=False, analytic_first=True) == [
        "differences between samples",
        "the closed form of the first step",
    ]


def test_a_shift_of_one_changes_nothing():
    assert unshift(RectifiedFlow(), [0.9, 0.25], 1.0) == [0.9, 0.25]


@pytest.mark.parametrize("options", [{"shift": 3.0}, {"use_dynamic_shifting": True}])
def test_diffusers_arrives_at_the_plan_s_sigmas(options):
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(**options)
    mu = 1.15 if "use_dynamic_shifting" in options else None
    shift = options.get("shift") or math.exp(mu)
    plan = Discretization.plain(torch.tensor([[1.0, 0.7, 0.2, 0.0]], dtype=torch.float64))
    levels = sigmas(RectifiedFlow(), plan)[0].tolist()
    scheduler.set_timesteps(sigmas=unshift(RectifiedFlow(), levels[:-1], shift), mu=mu)
    assert scheduler.sigmas.tolist() == pytest.approx(levels, abs=1e-6)


@pytest.mark.parametrize("name", ["fashion-nfe3", "fashion-nfe5"])
def test_the_graph_of_phi_gives_its_plans_after_a_file(name, tmp_path):
    policy = artifact.load(name).policy
    torch.export.save(export_phi(policy, 3), tmp_path / "phi.pt2")
    graph = torch.export.load(tmp_path / "phi.pt2").module()
    draw = torch.Generator().manual_seed(0)
    noise, features = (torch.randn(3, *s, generator=draw) for s in ((1, 28, 28), (10,)))
    plan = policy(noise, features)
    assert float(plan.tau.std(0).max()) > 0.1  # instances differ
    for got, expected in zip(
        graph(noise, features), (plan.tau, plan.dtau, plan.gamma), strict=True
    ):
        torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", ["fashion-nfe3-god", "fashion-nfe3-local"])
def test_a_policy_that_does_not_plan_from_the_noise_alone_is_no_graph(name):
    with pytest.raises(ValueError, match="policy must read the noise"):
        export_phi(artifact.load(name).policy)

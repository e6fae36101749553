import pytest
import torch

from indis.bench import speed

SMALL = tuple(
    speed.Case((3, 8, 8), 2, solver, scheduler, 1.0)
    for solver, scheduler in (
        ("dpmpp:2", "DPMSolverMultistepScheduler"),
        ("unipc:2", "UniPCMultistepScheduler"),
        ("euler", "FlowMatchEulerDiscreteScheduler"),
    )
)


def test_each_case_is_timed_with_every_kind_of_plan():
    rows = list(speed.solver_rows(0.01, SMALL[2:]))
    assert [row["plan"] for row in rows] == list(speed.PLANS)
    assert all(row["low"] <= row["ratio"] <= row["high"] for row in rows)
    assert all(row["ours"] > 0 and row["theirs"] > 0 and row["rounds"] >= 15 for row in rows)


@pytest.mark.parametrize("case", SMALL, ids=lambda case: case.solver)
def test_both_sides_end_at_the_same_samples(case):
    assert speed.compare(case, "shared", 0.01)["difference"] < 2e-6


def test_a_scheduler_of_other_noise_levels_is_refused(monkeypatch):
    monkeypatch.setitem(speed.TABLE, "beta_end", 0.02)
    with pytest.raises(RuntimeError, match="same samples"):
        speed.compare(SMALL[0], "shared", 0.01)


def test_plans_of_their_own_differ_by_sample_and_keep_the_ends():
    tau = torch.tensor([[1, 0.8, 0.6, 0.4, 0.2, 0]], dtype=torch.float64)
    plan = speed._own_plans(tau, 4, shifts=True)
    assert len(plan.tau.unique(dim=0)) == 4
    assert torch.equal(plan.tau[:, [0, -1]], tau[:, [0, -1]].expand(4, 2))
    assert bool((plan.tau.diff(dim=1) < 0).all())
    assert bool(((plan.tau[:, :-1] + plan.dtau) > 0).all())


def test_runs_take_turns_in_going_first():
    order = []
    speed.alternate(lambda: order.append("a"), lambda: order.append("b"), 0.0, least=2)
    assert order == ["a", "b", "a", "b", "b", "a"]


def test_edm_s_network_is_timed_against_diffusers_own_of_about_its_size():
    row = speed.network_row(0.01, width=8, batch=1)
    assert row["parameters"] == pytest.approx(row["their_parameters"], rel=0.2)
    assert row["low"] <= row["ratio"] <= row["high"] and row["rounds"] >= 15

"""What a time shift leaves as it is: with ``keep="data"`` the denoised sample that an answer means, else the answer."""

import pytest
import torch

from indis import IndisConfig
from indis.denoise import Form, convert
from indis.discretization import Bounds
from indis.noise import EDM, RectifiedFlow
from indis.policies import Global
from indis.policies.policy import discretize
from small_cases import TinyClasses

SCHEDULES = [(EDM(), "noise"), (RectifiedFlow(), "velocity"), (RectifiedFlow(), "data")]


@pytest.mark.parametrize(("schedule", "native"), SCHEDULES)
def test_a_shifted_answer_means_the_same_data_where_it_is_used(schedule, native):
    base = schedule.time(torch.linspace(schedule.log_snr(torch.tensor(0.9)), 3.0, 4, dtype=torch.float64))[None]
    logits = torch.zeros(2, 3, 3, dtype=torch.float64)
    logits[:, :2] = torch.randn(2, 2, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    plan = discretize(logits, base, schedule, Bounds.natural(schedule, native=native))
    form = Form(native)
    x, data = torch.randn(2, 5, dtype=torch.float64), torch.randn(2, 5, dtype=torch.float64)
    for k in range(3):
        used, asked = plan.tau[:, k], plan.tau[:, k] + plan.dtau[:, k]
        assert not torch.equal(used, asked)
        # The denoiser sees the state rescaled to the time that it is asked at: x / scale is what the form integrates.
        state = x * (form.scale(schedule, asked) / form.scale(schedule, used))[:, None]
        if form is Form.DATA:
            state = x
        answer = convert(data, Form.DATA, form, x=state, schedule=schedule, t=asked)
        meant = convert(plan.gamma[:, k, None] * answer, form, Form.DATA, x=x, schedule=schedule, t=used)
        torch.testing.assert_close(meant, data)


def test_without_shifts_gamma_is_what_its_logits_say():
    base = torch.tensor([[80.0, 1.0, 0.002]], dtype=torch.float64)
    logits = torch.zeros(1, 3, 2, dtype=torch.float64)
    logits[:, 2] = 0.7
    kept, plain = (discretize(logits, base, EDM(), Bounds(native=native)) for native in ("noise", None))
    assert torch.equal(kept.gamma, plain.gamma) and kept.gamma[0, 0] != 1


def test_the_method_keeps_the_data_unless_it_is_told_to_keep_the_answer():
    tiny = TinyClasses()
    assert IndisConfig(steps=2).bounds(tiny).native == "noise"
    assert IndisConfig(steps=2, keep="answer").bounds(tiny).native is None
    with pytest.raises(ValueError, match="keep must be data or answer, got 'both'"):
        IndisConfig(steps=2, keep="both")


def test_a_policy_of_either_kind_is_rebuilt_as_it_was():
    base = torch.tensor([[80.0, 1.0, 0.002]], dtype=torch.float64)
    for native in ("noise", None):
        policy = Global(base, EDM(), Bounds(native=native))
        policy.free.data.normal_(generator=torch.Generator().manual_seed(2))
        again = Global.rebuild(policy.describe(), policy.state_dict())
        noise = torch.zeros(1, 2)
        assert torch.equal(again(noise).gamma, policy(noise).gamma)

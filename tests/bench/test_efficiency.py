"""A fit's throughput, its memory and the start of commands are measured, not assumed."""

import pytest
import torch

from indis import losses
from indis.bench import efficiency
from indis.endpoints import teach
from indis.methods import heuristic
from small_cases import TinyClasses


def test_the_fit_and_the_plain_loop_compute_the_same_loss_and_gradient():
    denoiser = TinyClasses()
    data = teach(denoiser, heuristic(denoiser, solver="euler", steps=4), range(32))
    fit = efficiency._fit(denoiser, data, 3, 4)
    policy, index = fit.sampler.policy, fit.batch(0)
    with torch.no_grad():  # away from the start, where all of phi's answers are zero
        for parameter in policy.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))

    def gradients(loss):
        policy.zero_grad()
        loss.backward()
        return torch.cat([p.grad.flatten() for p in policy.parameters() if p.grad is not None])

    ours = fit.objective(0)
    plain = efficiency._plain_loss(policy, denoiser, data[index], losses.named("mse"))
    assert ours.item() == pytest.approx(plain.item(), rel=1e-4)
    torch.testing.assert_close(gradients(ours), gradients(plain), rtol=1e-3, atol=1e-5)


def test_help_does_not_wait_for_torch():
    rows = {row["what"]: row["seconds"] for row in efficiency.startup_rows(1)}
    assert rows["indis --help"] < 0.3 * rows["import torch"]
    assert rows["import indis, and a name of it"] < 2 * rows["import torch"]

import math
import subprocess
import sys
import time

import ot
import pytest
import torch

from indis.bench.toy_metrics import histogram_kl, wasserstein1


def petals(count: int, seed: int, length: float = 0.15, width: float = 0.03) -> torch.Tensor:
    """Eight thin Gaussians on the unit circle, each pointing outwards: ``(count, 2)``."""
    generator = torch.Generator().manual_seed(seed)
    angle = torch.randint(8, (count,), generator=generator) * (math.pi / 4)
    out, across = torch.randn(2, count, generator=generator)
    radius, offset = 1 + length * out, width * across
    cos, sin = angle.cos(), angle.sin()
    return torch.stack([radius * cos - offset * sin, radius * sin + offset * cos], 1)


def jitter(cloud: torch.Tensor, scale: float, seed: int = 9) -> torch.Tensor:
    return cloud + scale * torch.randn(cloud.shape, generator=torch.Generator().manual_seed(seed))


def transport(a: torch.Tensor, b: torch.Tensor) -> float:
    """The transport distance of every point, no cells."""
    weight = torch.full((len(a),), 1 / len(a), dtype=torch.float64)
    return float(
        ot.emd2(weight, weight, torch.cdist(a.double(), b.double()), numItermax=10_000_000)
    )


def test_transport_of_a_shift_is_its_length():
    cloud = petals(20_000, 0)
    assert wasserstein1(cloud + torch.tensor([3.0, 4.0]), cloud) == pytest.approx(5, rel=1e-3)
    assert wasserstein1(cloud, cloud) == pytest.approx(0, abs=1e-12)


def test_transport_between_two_atoms_and_one():
    samples, reference = (
        torch.tensor([[0.0, 0.0], [1.0, 0.0]]),
        torch.tensor([[0.0, 0.0]] * 3 + [[1.0, 0.0]]),
    )
    assert wasserstein1(samples, reference) == pytest.approx(0.25, rel=1e-9)


def test_transport_is_the_unquantised_one_when_every_point_has_its_cell():
    a, b = petals(400, 1), jitter(petals(400, 2), 0.1)
    assert wasserstein1(a, b) == pytest.approx(transport(a, b), rel=1e-2)


@pytest.mark.parametrize("noise", [0.05, 0.2])
def test_quantisation_hardly_changes_the_transport(noise):
    a, b = jitter(petals(2000, 1), noise), petals(2000, 2)
    assert wasserstein1(a, b, cells=700) == pytest.approx(transport(a, b), rel=0.06)


def test_all_points_lower_the_floor_of_the_transport():
    floor = wasserstein1(petals(20_000, 1), petals(20_000, 2))
    assert floor < 0.025 < transport(petals(2000, 1), petals(2000, 2))
    assert wasserstein1(jitter(petals(20_000, 1), 0.05), petals(20_000, 2)) > 1.3 * floor


def test_transport_of_large_clouds_is_quick():
    before = time.process_time()
    wasserstein1(jitter(petals(20_000, 1), 0.1), petals(20_000, 2))
    assert time.process_time() - before < 5  # about 0.5 s


def test_divergence_of_equal_clouds_is_zero_and_of_fresh_samples_small():
    reference = petals(20_000, 0)
    assert histogram_kl(reference, reference) == pytest.approx(0, abs=1e-12)
    assert 0 < histogram_kl(petals(20_000, 1), reference) < 0.05
    assert histogram_kl(reference[:10_000].repeat(2, 1), reference[:10_000]) == pytest.approx(
        0, abs=1e-12
    )


def test_divergence_grows_with_distortion_and_far_points_count():
    reference, fresh = petals(20_000, 0), petals(20_000, 1)
    values = [histogram_kl(jitter(fresh, noise), reference) for noise in (0, 0.05, 0.1, 0.2)]
    assert values == sorted(values) and values[-1] > 20 * values[0]
    assert histogram_kl(fresh + 100, reference) > 4


def test_divergence_by_hand():
    # Two cells side by side, 1/4 : 3/4 against 1/2 : 1/2; what lies outside falls into the nearest
    # cell.
    reference = torch.tensor([[0.5, 0.5], [1.5, 0.5], [1.5, 0.5], [1.5, 0.5]])
    samples = torch.tensor([[-7.0, 0.5], [9.0, 0.5]])
    value = histogram_kl(samples, reference, bins=2, bounds=(0, 2, 0, 2), smoothing=1e-14)
    assert value == pytest.approx(0.25 * math.log(0.5) + 0.75 * math.log(1.5), rel=1e-12)


@pytest.mark.parametrize("metric", [histogram_kl, wasserstein1])
def test_bad_clouds_are_named(metric):
    good = petals(10, 0)
    with pytest.raises(ValueError, match="samples has shape"):
        metric(torch.zeros(3, 3), good)
    with pytest.raises(ValueError, match="reference has shape"):
        metric(good, torch.zeros(0, 2))
    with pytest.raises(ValueError, match="samples holds"):
        metric(torch.full((4, 2), math.inf), good)
    with pytest.raises(ValueError, match="expected"):
        metric(good, torch.zeros(5, 2))


def test_a_smoothing_without_effect_is_refused():
    with pytest.raises(ValueError, match="smoothing is 0"):
        histogram_kl(petals(10, 0), petals(10, 0), smoothing=0)


def test_a_missing_pot_says_what_to_install():
    code = "import sys; sys.modules['ot'] = None; import indis.bench.toy_metrics"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=_environment()
    )
    assert "pip install indis-diffusion[metrics]" in result.stderr


def _environment() -> dict[str, str]:
    return {"PYTHONPATH": ":".join(sys.path)}

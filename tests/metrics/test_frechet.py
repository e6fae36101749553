import pytest
import torch
from torchmetrics.image.fid import FrechetInceptionDistance

from indis.metrics.frechet import Moments, frechet_distance
from indis.storage import load_tensors, save_tensors


def cloud(count: int, dim: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(dim, dim, generator=generator, dtype=torch.float64)
    return torch.randn(count, dim, generator=generator, dtype=torch.float64) @ mix + seed


def moments(features: torch.Tensor) -> Moments:
    result = Moments(features.shape[1])
    result.update(features)
    return result


def exact(mean: torch.Tensor, covariance: torch.Tensor) -> Moments:
    """Moments with this very mean and covariance."""
    return Moments.from_tensors({"count": torch.tensor(2), "mean": mean, "scatter": covariance})


class Flatten(torch.nn.Module):
    num_features = 12

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.flatten(1).double()


def test_agrees_with_torchmetrics():
    a, b = cloud(300, 12, 0), cloud(200, 12, 1)
    # normalize=True would rescale to uint8; the plain extractor sees what it is given.
    theirs = FrechetInceptionDistance(feature=Flatten()).set_dtype(torch.float64)
    for features, real in ((a, True), (b, False)):
        theirs.update(features.reshape(-1, 3, 2, 2), real=real)
    assert frechet_distance(moments(a), moments(b)) == pytest.approx(
        theirs.compute().item(), rel=1e-9
    )


def test_closed_form_of_commuting_gaussians():
    rotation, _ = torch.linalg.qr(
        torch.randn(5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    )
    a, b = (torch.tensor(v, dtype=torch.float64) for v in ([1.0, 4, 9, 0, 2], [4.0, 4, 1, 3, 0]))
    shift = torch.tensor([1.0, -2, 0, 0.5, 0], dtype=torch.float64)
    expected = shift.square().sum() + (a.sqrt() - b.sqrt()).square().sum()
    left = exact(torch.zeros(5, dtype=torch.float64), rotation @ a.diag() @ rotation.T)
    right = exact(shift, rotation @ b.diag() @ rotation.T)
    assert frechet_distance(left, right) == pytest.approx(expected.item(), rel=1e-10)
    assert frechet_distance(right, left) == pytest.approx(expected.item(), rel=1e-10)


def test_closed_form_of_gaussians_that_do_not_commute():
    # For 2x2 matrices tr (AB)^{1/2} = sqrt(tr AB + 2 sqrt(det A det B)).
    a = torch.tensor([[2.0, 1.0], [1.0, 3.0]], dtype=torch.float64)
    b = torch.tensor([[5.0, -2.0], [-2.0, 1.0]], dtype=torch.float64)
    cross = (torch.trace(a @ b) + 2 * (a.det() * b.det()).sqrt()).sqrt()
    expected = torch.trace(a) + torch.trace(b) - 2 * cross
    zero = torch.zeros(2, dtype=torch.float64)
    assert frechet_distance(exact(zero, a), exact(zero, b)) == pytest.approx(
        expected.item(), rel=1e-12
    )


def test_equal_moments_are_at_zero_even_when_singular():
    few = moments(cloud(10, 40, 2))
    distance = frechet_distance(few, few)
    assert 0 <= distance < 1e-10 * few.covariance.trace()


def test_merge_equals_a_single_pass_far_from_the_origin():
    features = cloud(1000, 6, 4) + 1e6
    parts = [moments(part) for part in features.split([1, 299, 700])]
    merged = Moments(6)
    for part in parts:
        merged.merge(part)
    assert merged.count == 1000
    torch.testing.assert_close(merged.mean, features.mean(0), rtol=1e-14, atol=0)
    torch.testing.assert_close(merged.covariance, torch.cov(features.T), rtol=1e-8, atol=1e-8)


def test_an_empty_side_changes_nothing():
    some = moments(cloud(50, 3, 5))
    before = some.covariance.clone()
    some.merge(Moments(3))
    some.update(torch.empty(0, 3))
    assert some.count == 50 and torch.equal(some.covariance, before)


def test_a_file_keeps_every_bit(tmp_path):
    some = moments(cloud(50, 3, 6))
    save_tensors(tmp_path / "moments.safetensors", some.to_tensors())
    back = Moments.from_tensors(load_tensors(tmp_path / "moments.safetensors")[0])
    assert (
        back.count == 50
        and torch.equal(back.mean, some.mean)
        and torch.equal(back.scatter, some.scatter)
    )


@pytest.mark.parametrize(
    "features", [torch.zeros(3), torch.zeros(2, 4), torch.tensor([[0.0, float("nan"), 0.0]])]
)
def test_bad_features_are_refused_and_leave_no_trace(features):
    some = moments(cloud(50, 3, 7))
    before = some.mean.clone()
    with pytest.raises(ValueError, match="features"):
        some.update(features)
    assert some.count == 50 and torch.equal(some.mean, before)


def test_what_cannot_be_compared_is_named():
    with pytest.raises(ValueError, match="at least 2"):
        frechet_distance(Moments(3), moments(cloud(5, 3, 0)))
    with pytest.raises(ValueError, match="dimension 3 and 4"):
        frechet_distance(Moments(3), Moments(4))
    with pytest.raises(ValueError, match="scatter"):
        Moments.from_tensors({"mean": torch.zeros(3), "count": torch.tensor(1)})

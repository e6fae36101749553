"""FID's parts: 8-bit pictures, references from files and folders, Inception by torch-fidelity."""

import sys
import types

import numpy as np
import pytest
import torch
from PIL import Image

from indis.evaluate import frechet_of_images, moments_of_images
from indis.metrics.fid import WEIGHTS, Inception, coarse_pixels, image_batches, moments_from_npz
from small_cases import sentence


@pytest.fixture
def folder(tmp_path):
    """Six random pictures of 16 x 16 pixels, one of them further down."""
    generator = np.random.default_rng(0)
    for i in range(6):
        path = tmp_path / ("below" if i == 5 else ".") / f"{i}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(generator.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(path)
    return tmp_path


@pytest.fixture
def fidelity(monkeypatch):
    """torch-fidelity with a network of five features in place of Inception's."""

    class Extractor(torch.nn.Module):
        def __init__(self, name, features, feature_extractor_weights_path):
            super().__init__()
            assert (name, features) == ("inception-v3-compat", ["2048"])
            self.scale = torch.load(feature_extractor_weights_path, weights_only=True)

        def forward(self, images):
            assert images.dtype == torch.uint8
            return (self.scale * images.float().flatten(1)[:, :5],)

    module = types.ModuleType("torch_fidelity.feature_extractor_inceptionv3")
    module.FeatureExtractorInceptionV3 = Extractor
    monkeypatch.setitem(sys.modules, "torch_fidelity", types.ModuleType("torch_fidelity"))
    monkeypatch.setitem(sys.modules, module.__name__, module)


def test_images_come_in_the_order_of_their_paths_and_in_the_range_of_samples(folder):
    batches = list(image_batches(folder, (3, 16, 16), batch=4))
    assert [len(batch) for batch in batches] == [4, 2]
    first = np.array(Image.open(folder / "0.png"))
    expected = torch.from_numpy(first).permute(2, 0, 1).float() / 127.5 - 1
    torch.testing.assert_close(batches[0][0], expected)


def test_coarse_pixels_are_the_means_of_clipped_8_bit_cells():
    images = torch.linspace(-1.5, 1.5, 256).reshape(1, 1, 16, 16).expand(2, 3, 16, 16)
    found = coarse_pixels(images)
    assert found.shape == (2, 192)
    bytes_ = (images[0, 0, :2, :2] * 127.5 + 128).clamp(0, 255).floor()
    assert found[0, 0].item() == pytest.approx((bytes_ / 127.5 - 1).mean().item())
    assert found.min() >= -1 and found.max() <= 1


def test_the_distance_to_the_own_reference_is_zero_and_to_shifted_colours_the_shift(folder):
    def images():
        return image_batches(folder, (3, 16, 16))

    reference = moments_of_images(images(), coarse_pixels, 192)
    assert frechet_of_images(images(), coarse_pixels, reference) == pytest.approx(0, abs=1e-8)
    shifted = (0.5 * batch for batch in images())
    half = moments_of_images((0.5 * batch for batch in images()), coarse_pixels, 192)
    expected = (half.mean - reference.mean).square().sum().item()
    assert frechet_of_images(shifted, coarse_pixels, reference) > expected > 0


def test_moments_are_those_of_the_arrays_mu_and_sigma(tmp_path):
    generator = np.random.default_rng(1)
    points = generator.normal(size=(40, 3))
    np.savez(tmp_path / "ref.npz", mu=points.mean(0), sigma=np.cov(points, rowvar=False))
    moments = moments_from_npz(tmp_path / "ref.npz")
    np.testing.assert_allclose(moments.covariance, np.cov(points, rowvar=False))
    np.testing.assert_allclose(moments.mean, points.mean(0))


def test_inception_sees_8_bit_pictures_and_reads_the_user_s_file(tmp_path, fidelity):
    torch.save(torch.tensor(2.0), tmp_path / WEIGHTS)
    images = torch.tensor([-2.0, -1.0, 0.0, 0.5, 3.0]).expand(1, 5).reshape(1, 1, 1, 5)
    assert Inception(tmp_path / WEIGHTS)(images).tolist() == [[0, 0, 256, 382, 510]]


def test_what_fid_lacks_is_named(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError) as error:
        Inception(tmp_path / "none.pth")
    assert WEIGHTS in sentence(error)
    (tmp_path / WEIGHTS).touch()
    monkeypatch.setitem(sys.modules, "torch_fidelity.feature_extractor_inceptionv3", None)
    with pytest.raises(ImportError) as error:
        Inception(tmp_path / WEIGHTS)
    assert "pip install indis-diffusion[fid]" in sentence(error)


def test_references_that_cannot_be_are_refused(folder, tmp_path_factory):
    with pytest.raises(ValueError) as error:
        list(image_batches(folder, (3, 32, 32)))
    assert "must be of 32x32 pixels, got 16x16" in sentence(error)
    empty = tmp_path_factory.mktemp("empty")
    with pytest.raises(ValueError) as error:
        list(image_batches(empty, (3, 32, 32)))
    assert "at least two images, got 0" in sentence(error)
    np.savez(empty / "other.npz", mean=np.zeros(3))
    with pytest.raises(ValueError) as error:
        moments_from_npz(empty / "other.npz")
    assert "must hold the arrays mu and sigma" in sentence(error)
    np.savez(empty / "object.npz", mu=np.array([{}], dtype=object), sigma=np.zeros(1))
    with pytest.raises(ValueError) as error:
        moments_from_npz(empty / "object.npz")  # a pickle inside, which is not read
    assert "must hold the arrays mu and sigma" in sentence(error)

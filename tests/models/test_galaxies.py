"""Galaxies: the loader on a look-alike file, and the real network where its package is."""

from importlib.util import find_spec

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import indis
from indis import models
from indis.endpoints import noise_from_seeds
from indis.models import galaxies
from indis.pixels import to_bytes

CHANNELS, PLACES, INNER, PATCH = 3, 4, (5, 6), 4


@pytest.fixture(scope="module")
def real():
    if find_spec(galaxies.PACKAGE) is None:
        pytest.skip(f"{galaxies.PACKAGE} is not installed: {galaxies.INSTALL}")
    return models.load("galaxies")


def look_alike(blocks=2, seed=0):
    """Random arrays in the order of the package's files."""
    shapes = [(CHANNELS, 2, PATCH, PATCH), (CHANNELS, 1, 1), (1, CHANNELS, PATCH, PATCH), (1, 1, 1)]
    block = [(INNER[0], PLACES), (INNER[0],), (PLACES, INNER[0]), (PLACES,)]
    block += [(INNER[1], CHANNELS), (INNER[1],), (CHANNELS, INNER[1]), (CHANNELS,)]
    block += [(CHANNELS, PLACES)] * 2 + [(PLACES, CHANNELS)] * 2
    shapes += block * blocks + [(CHANNELS, PLACES)] * 2
    random = np.random.RandomState(seed)
    return [random.randn(*shape).astype("float32") for shape in shapes] + [np.float32(10)]


def write(path, arrays):
    with path.open("wb") as file:
        for array in arrays:
            np.save(file, array)
    return path


def score_by_hand(arrays, x, t):
    """The network in loops over patches, from the package's description alone."""
    a = [torch.from_numpy(np.asarray(v)) for v in arrays]
    both = torch.stack([x[0, 0], torch.full_like(x[0, 0], t / 10)])
    corners = [(i, j) for i in (0, PATCH) for j in (0, PATCH)]
    cut = [both[:, i : i + PATCH, j : j + PATCH] for i, j in corners]
    y = torch.stack([(a[0] * one).sum((1, 2, 3)) for one in cut], 1) + a[1][:, :, 0]

    def norm(v, weight, bias):
        return (v - v.mean()) / (v.var(unbiased=False) + 1e-5).sqrt() * weight + bias

    for start in range(4, len(a) - 3, 12):
        b = a[start : start + 12]
        v = norm(y, b[8], b[9])
        y = y + F.relu(v @ b[0].T + b[1]) @ b[2].T + b[3]
        v = norm(y.T, b[10], b[11])
        y = y + (F.relu(v @ b[4].T + b[5]) @ b[6].T + b[7]).T
    y = norm(y, a[-3], a[-2])
    out = torch.zeros(2 * PATCH, 2 * PATCH)
    for place, (i, j) in enumerate(corners):
        # A transposed convolution of equinox reads its kernel back to front.
        patch = (a[2][0].flip(-1, -2) * y[:, place, None, None]).sum(0)
        out[i : i + PATCH, j : j + PATCH] = patch + a[3][0]
    return out


def test_the_network_of_a_file_answers_with_its_score(tmp_path):
    arrays = look_alike()
    denoiser = models.load(f"galaxies:{write(tmp_path / 'mine.eqx', arrays)}")
    assert (denoiser.name, denoiser.shape) == ("galaxies-mine", (1, 8, 8))
    x = torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    for t in (0.5, 7.0):
        scored = denoiser.network(x, torch.tensor([t]))[0, 0]
        assert torch.allclose(scored, score_by_hand(arrays, x, t), atol=1e-4)


def test_noise_is_the_score_of_the_variance_preserving_process(tmp_path):
    denoiser = models.load(f"galaxies:{write(tmp_path / 'mine.eqx', look_alike())}")
    t = torch.tensor([0.3, 4.0], dtype=torch.float64)
    sigma, alpha = t.expm1().sqrt(), (-t / 2).exp()
    x = torch.randn(2, 1, 8, 8) * sigma.float()[:, None, None, None]
    score = denoiser.network(alpha.float()[:, None, None, None] * x, t.float())
    deviation = (1 - (-t).exp()).sqrt().float()[:, None, None, None]
    noise = denoiser(x, sigma, denoiser.condition([0, 1]))
    assert torch.allclose(noise, -deviation * score, rtol=1e-4, atol=1e-5)
    ends = torch.tensor([denoiser.schedule.t_max, denoiser.schedule.t_min], dtype=torch.float64)
    assert torch.allclose(ends.square().log1p(), torch.tensor([10, 1e-3], dtype=torch.float64))


def test_pixels_and_the_loss_are_one_fixed_map_of_log_brightness(tmp_path):
    denoiser = models.load(f"galaxies:{write(tmp_path / 'mine.eqx', look_alike())}")
    ends = torch.tensor([galaxies.BLACK, galaxies.WHITE, 20.0]).view(3, 1, 1, 1)
    assert to_bytes(denoiser.decode(ends)).flatten().tolist() == [0, 255, 255]
    a, b = torch.full((2, 1, 8, 8), 1.0), torch.full((2, 1, 8, 8), 1.5)
    loss = models.loss("log-brightness")(denoiser.decode(a), denoiser.decode(b))
    assert torch.allclose(loss, torch.full((2,), 0.25))


def test_a_file_of_something_else_is_refused(tmp_path):
    short = write(tmp_path / "short.eqx", look_alike()[:-4])
    with pytest.raises(ValueError, match="does not hold a score network of galaxygrad"):
        models.load(f"galaxies:{short}")
    other = look_alike()
    other[6] = other[6][:, :-1]
    with pytest.raises(ValueError, match="does not hold"):
        models.load(f"galaxies:{write(tmp_path / 'other.eqx', other)}")
    text = tmp_path / "text.eqx"
    text.write_text("no arrays here")
    with pytest.raises(ValueError, match="does not hold"):
        models.load(f"galaxies:{text}")


def test_without_the_package_one_sentence_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr(galaxies, "find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match=r"pip install --no-deps galaxygrad==0\.2\.1$"):
        models.load("galaxies")


def test_the_score_at_pure_noise_is_that_of_a_unit_normal(real):
    assert real.shape == (1, 32, 32)
    assert sum(p.numel() for p in real.network.parameters()) == 605_761
    x = noise_from_seeds(range(16), real.shape)
    score = real.network(x, torch.full((16,), 10.0))
    assert float((-score * x).mean() / x.square().mean()) == pytest.approx(1, abs=0.01)


def test_the_teacher_draws_galaxies_of_very_different_size(real):
    noise = noise_from_seeds(range(8), real.shape)
    with torch.no_grad():
        galaxy = indis.heuristic(real, grid="log_snr", steps=20)(real, noise, real.condition([0]))
    inside = ((galaxy > galaxies.BLACK) & (galaxy < galaxies.WHITE)).float().mean()
    assert float(inside) > 0.999
    bright = (galaxy > 2).sum((1, 2, 3))
    assert int(bright.min()) > 0 and float(bright.max() / bright.min()) > 2
    assert float(galaxy.median().abs()) < 0.1  # the sky


def test_other_networks_of_the_package_load_by_name(real):
    other = models.load("galaxies:ZTF_ScoreNet32")
    assert other.name == models.name_of("galaxies:ZTF_ScoreNet32") == "galaxies-ZTF_ScoreNet32"
    assert other.fingerprint != real.fingerprint
    with pytest.raises(ValueError, match="networks ZTF_ScoreNet32.*got 'nothing'"):
        models.load("galaxies:nothing")

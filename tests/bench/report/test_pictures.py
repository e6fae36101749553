"""Samples pixel for pixel, and the README's picture."""

import io
import re

import numpy as np
import pytest
import torch

from bench.report.cases import pixels, report, samples, toy, write
from indis.storage import save_tensors

pytest.importorskip("jinja2")
image = pytest.importorskip("matplotlib.image")

from indis.bench.report import charts, pictures  # noqa: E402
from indis.bench.report.page import readme_picture  # noqa: E402


def test_sample_rows_keep_order_and_pixels(full):
    _, _, page = full
    labels = re.findall(r'<div class="strip"><span>([^<]*)</span>', page)
    assert labels == samples()[1]["order"]
    uri = re.search(r'alt="INDIS N=3" src="([^"]*)', page).group(1)
    shown = (pixels(uri) * 255).round().astype(np.uint8)
    assert shown.shape == (28, 16 * 30 - 2, 4)
    np.testing.assert_array_equal(shown[:, 30:58, 0], samples()[0]["INDIS N=3"][1])
    assert not shown[:, 28:30, 3].any()


def test_colour_samples_use_what_every_row_has(tmp_path):
    images = torch.randint(256, (20, 3, 8, 6), dtype=torch.uint8)
    save_tensors(tmp_path / "samples.safetensors", {"a": images, "b": images[:5].clone()})
    _, page = report(tmp_path)
    shown = (pixels(re.search(r'alt="b" src="([^"]*)', page).group(1)) * 255).round()
    assert shown.shape == (8, 5 * 8 - 2, 4)
    np.testing.assert_array_equal(shown[:, :6, :3], images[0].permute(1, 2, 0))


@pytest.mark.parametrize("leave_out", [(), ("toy.json",), ("samples.safetensors",)])
def test_readme_picture(tmp_path, leave_out):
    readme_picture(write(tmp_path, leave_out), tmp_path / "picture.png")
    data = (tmp_path / "picture.png").read_bytes()
    assert len(data) <= pictures.PICTURE_BYTES
    assert image.imread(io.BytesIO(data), format="png").shape[1] == 1200


def test_readme_picture_stays_small_with_incompressible_samples(tmp_path):
    noise = torch.randint(256, (16, 3, 64, 64), dtype=torch.uint8)
    save_tensors(tmp_path / "samples.safetensors", {f"row {k}": noise.clone() for k in range(4)})
    readme_picture(tmp_path, tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size <= pictures.PICTURE_BYTES


def test_figures_are_drawn_on_white():
    corner = pixels(charts.data_uri(charts.png(charts.toy_curves(toy((3, 5))["cells"]))))[0, 0, :3]
    np.testing.assert_allclose(corner, 1.0)

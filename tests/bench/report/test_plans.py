"""Figures of plans, whatever rows a folder has of them."""

import pytest
import torch

from bench.report.cases import curves, report
from indis.storage import save_json, save_tensors

pytest.importorskip("jinja2")
pytest.importorskip("matplotlib")


def test_plans_without_extras(tmp_path):
    tau = torch.linspace(1, 0, 5).repeat(30, 1)
    save_tensors(tmp_path / "plans.safetensors", {"tau N=4": tau})
    sections, page = report(tmp_path)
    assert sections == ["plans"] and page.count("<img") == 1


def test_plans_of_one_step_have_no_interior(tmp_path):
    tensors = {"tau N=1": torch.tensor([[1.0, 0.0]] * 9), "gamma N=1": torch.rand(9, 1)}
    save_tensors(tmp_path / "plans.safetensors", tensors)
    _, page = report(tmp_path)
    assert page.count("<img") == 1


def test_plans_without_any_instance_have_no_section(tmp_path):
    save_tensors(
        tmp_path / "plans.safetensors",
        {"label": torch.zeros(4)},
        {"global N=3": {"tau": [1, 0.5, 0]}},
    )
    save_json(tmp_path / "curves.json", curves())
    assert report(tmp_path)[0] == ["curves"]

"""The README's library example runs as it stands, and is as short as the README promises."""

import re
from pathlib import Path

import pytest
import torch

import indis
import tiny_pipelines

README = Path(__file__).parent.parent / "README.md"


DRAW, PIPE, FIT, WRAP = range(4)


def example(number: int) -> str:
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), re.S)
    assert len(blocks) == 4
    return blocks[number]


def foreign_loop() -> str:
    """The loop of architecture.md that belongs to somebody else."""
    page = README.parent / "docs" / "architecture.md"
    (block,) = re.findall(r"```python\n(stepper = .*?)```", page.read_text(), re.S)
    return block


def run(number: int, names: dict) -> dict:
    exec(compile(example(number), "README.md", "exec"), names)
    return names


def test_the_readme_is_a_door_and_not_a_notebook():
    assert len(README.read_text().splitlines()) <= 130
    assert len([line for line in example(DRAW).splitlines() if line.strip()]) <= 8


def test_drawing_fitting_and_driving_run_as_the_readme_says(tmp_path, monkeypatch):
    pytest.importorskip("diffusers")
    monkeypatch.chdir(tmp_path)
    names = run(DRAW, {})
    pictures = names["pictures"]
    assert pictures.shape == (8, 1, 28, 28) and bool(pictures.isfinite().all())
    run(FIT, names)
    files = {path.name for path in (tmp_path / "my-sampler").iterdir()}
    assert files == {"config.json", "policy.safetensors"}
    model, sampler, seeds = names["model"], names["sampler"], names["seeds"]
    condition = model.condition(seeds)
    given = {
        "sampler": sampler,
        "model": model,
        "noise": indis.noise_from_seeds(seeds, model.shape),
        "condition": condition,
        "network": lambda x, t: model(x, t, condition),
    }
    with torch.no_grad():
        exec(foreign_loop(), given)
        assert torch.equal(given["sample"], pictures)


def test_a_pipeline_takes_a_sampler_in_one_line():
    pytest.importorskip("diffusers")
    pipe = tiny_pipelines.flux()
    tau = torch.linspace(1, 0, 6, dtype=torch.float64)[None]
    sampler = indis.Sampler(indis.Fixed(tau), indis.Euler())
    with torch.no_grad():
        images = run(PIPE, {"indis": indis, "pipe": pipe, "sampler": sampler})["images"]
    assert len(images) == 1 and len(pipe.scheduler.timesteps) == 5


def test_the_readme_s_way_to_a_model_of_one_s_own_works_with_a_diffusers_network():
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    blocks = {
        "down_block_types": ("CrossAttnDownBlock2D",),
        "up_block_types": ("CrossAttnUpBlock2D",),
    }
    sizes = {
        "block_out_channels": (8,),
        "norm_num_groups": 4,
        "cross_attention_dim": 6,
        "attention_head_dim": 4,
    }
    unet = diffusers.UNet2DConditionModel(
        sample_size=64, layers_per_block=1, **sizes, **blocks
    ).eval()
    prompts, table = ["a shoe", "a bag", "a coat"], torch.randn(3, 5, 6)
    given = {
        "indis": indis,
        "unet": unet,
        "prompts": prompts,
        "embed": lambda texts: table[[prompts.index(text) for text in texts]],
        "decode": lambda latents: latents[:, :3],
    }
    model = run(WRAP, given)["model"]
    teacher = indis.heuristic(model, solver="ipndm:3", grid="natural", steps=3)
    data = indis.teach(model, teacher, range(6))
    method = indis.INDIS(steps=2, width=8)
    method = method.with_recipe(iterations=2, batch=2, holdout=2, probes=2)
    process = method.tuning(model, data, indis.losses.named("mse"))
    list(process.run())
    with torch.no_grad():
        drawn = process.sampler(model, data.noise, data.condition)
    assert drawn.shape == (6, 4, 64, 64) and bool(drawn.isfinite().all())
    assert all(parameter.grad is None for parameter in unet.parameters())

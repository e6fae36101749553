"""The README's library example runs as it stands, and is as short as the README promises."""

import re
from pathlib import Path

import pytest
import torch

import indis

README = Path(__file__).parent.parent / "README.md"


def example(number: int = 0) -> str:
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), re.S)
    assert len(blocks) == 2
    return blocks[number]


def test_the_readme_example_is_at_most_fifteen_lines():
    assert len([line for line in example().splitlines() if line.strip()]) <= 15


def test_the_readme_example_runs_and_saves_a_sampler(tmp_path, monkeypatch):
    pytest.importorskip("diffusers")
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(compile(example(), "README.md", "exec"), names)
    assert names["images"].shape == (10, 1, 28, 28)
    assert bool(names["images"].isfinite().all())
    assert {path.name for path in (tmp_path / "my-sampler").iterdir()} == {
        "config.json",
        "policy.safetensors",
    }


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
    exec(compile(example(1), "README.md", "exec"), given)
    model = given["model"]
    teacher = indis.heuristic(model, solver="ipndm:3", grid="natural", steps=3)
    data = indis.gather(indis.endpoint_batches(model, teacher, range(6)))
    fitting = indis.Recipe(iterations=2, batch=2, holdout=2)
    process = indis.INDIS(steps=2, probes=2, width=8, recipe=fitting).tuning(
        model, data, indis.losses.named("mse")
    )
    list(process.run())
    with torch.no_grad():
        drawn = process.sampler(model, data.noise, data.condition)
    assert drawn.shape == (6, 4, 64, 64) and bool(drawn.isfinite().all())
    assert all(parameter.grad is None for parameter in unet.parameters())

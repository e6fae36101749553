"""The README's library example runs as it stands, and is as short as the README promises."""

import re
from pathlib import Path

import pytest

README = Path(__file__).parent.parent / "README.md"


def example() -> str:
    (block,) = re.findall(r"```python\n(.*?)```", README.read_text(), re.S)
    return block


def test_the_readme_example_is_at_most_fifteen_lines():
    assert len([line for line in example().splitlines() if line.strip()]) <= 15


def test_the_readme_example_runs_and_saves_a_sampler(tmp_path, monkeypatch):
    pytest.importorskip("diffusers")
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(compile(example(), "README.md", "exec"), names)
    assert names["images"].shape == (10, 1, 28, 28)
    assert bool(names["images"].isfinite().all())
    assert {path.name for path in (tmp_path / "my-sampler").iterdir()} == {"config.json", "policy.safetensors"}

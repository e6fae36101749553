"""Rules that no single function can keep: sizes, layers, light imports, and no way out of the graph
for times."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

import indis

SOURCE = Path(indis.__file__).parent
ROOT = Path(__file__).parent.parent
TIME_PATH = [
    SOURCE / "plan.py",
    *sorted((SOURCE / "noise").glob("*.py")),
    *sorted((SOURCE / "solvers").glob("*.py")),
    *sorted((SOURCE / "policies").glob("*.py")),
]
# Border checks, the constant scale of the prior, the loop's guard, initial values of a network, a
# seed from bytes.
MAY_LEAVE = {
    ("plan.py", "check", "float"),
    ("plan.py", "check", "tolist"),
    ("plan.py", "check_start", "tolist"),
    ("solvers/stepper.py", "_check_start", "float"),
    ("noise/tables.py", "__post_init__", "tolist"),  # a given table
    ("noise/clock.py", "fit", "tolist"),  # the ends of a schedule
    ("noise/schedule.py", "end_levels", "float"),
    ("noise/schedule.py", "prior", "float"),
    ("noise/schedule.py", "zero_time", "float"),
}


def escapes(text):
    """(function, call) for everything that takes a tensor out of the graph or out of torch."""
    found = set()

    def visit(node, function):
        if isinstance(node, ast.FunctionDef):
            function = node.name
        if isinstance(node, ast.Attribute) and node.attr in (
            "item",
            "numpy",
            "tolist",
            "no_grad",
            "inference_mode",
        ):
            found.add((function, node.attr))
        called = node.func if isinstance(node, ast.Call) else None
        if (
            isinstance(called, ast.Name)
            and called.id == "float"
            and not isinstance(node.args[0], ast.Constant)
        ):
            found.add((function, "float"))
        for child in ast.iter_child_nodes(node):
            visit(child, function)

    visit(ast.parse(text), "")
    return found


def test_the_checker_finds_every_way_out():
    text = """
def f(x):
    a, b, c = x.item(), x.detach().numpy(), float(x.max())
    with torch.no_grad():
        return float("inf"), x.tolist()

class C:
    @torch.inference_mode()
    def g(self, x):
        return x.sum()
"""
    inside = {("f", name) for name in ("item", "numpy", "float", "no_grad", "tolist")}
    assert escapes(text) == inside | {("g", "inference_mode")}


@pytest.mark.parametrize("path", TIME_PATH, ids=lambda path: str(path.relative_to(SOURCE)))
def test_times_keep_their_gradient(path):
    name = str(path.relative_to(SOURCE))
    allowed = {(function, call) for file, function, call in MAY_LEAVE if file == name}
    assert escapes(path.read_text()) <= allowed


def test_the_time_path_is_where_it_is_looked_for():
    names = {str(path.relative_to(SOURCE)) for path in TIME_PATH}
    assert {
        "noise/tables.py",
        "plan.py",
        "solvers/loop.py",
        "solvers/unipc.py",
        "policies/learned.py",
    } <= names
    assert len(names) >= 11


def test_no_file_is_longer_than_four_hundred_lines():
    lengths = {
        str(p.relative_to(SOURCE)): len(p.read_text().splitlines()) for p in SOURCE.rglob("*.py")
    }
    assert len(lengths) > 40
    assert {name: length for name, length in lengths.items() if length > 400} == {}


def test_importing_the_library_is_light():
    code = """
import json, sys, time
import torch
before = time.process_time()
import indis.public
seconds = time.process_time() - before
print(json.dumps({"seconds": seconds, "loaded": [n.partition(".")[0] for n in sys.modules]}))
"""
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    told = json.loads(result.stdout)
    heavy = {
        "diffusers",
        "transformers",
        "matplotlib",
        "scipy",
        "ot",
        "jinja2",
        "lpips",
        "PIL",
        "tyro",
    }
    assert heavy & set(told["loaded"]) == set()
    assert "safetensors" in told["loaded"]
    assert told["seconds"] < 2


def test_no_model_is_imported_with_the_library():
    code = "import sys, indis.public; print([n for n in sys.modules if n.startswith('indis.')])"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert "indis.evaluate" in result.stdout or "indis.losses" in result.stdout
    assert "indis.models" not in result.stdout and "indis.bench" not in result.stdout


def test_the_library_s_own_names_need_no_heavy_package():
    code = "import sys, indis.public; print(' '.join({n.partition('.')[0] for n in sys.modules}))"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    loaded = set(result.stdout.split())
    assert {"diffusers", "transformers", "matplotlib", "scipy", "ot", "lpips"} & loaded == set()
    assert "torch" in loaded


def test_every_public_name_exists_and_is_listed_once():
    assert len(indis.__all__) > 30
    assert len(set(indis.__all__)) == len(indis.__all__)
    assert [name for name in indis.__all__ if getattr(indis, name, None) is None] == []


def test_everything_public_tells_what_it_is():
    plain = {"UNCONDITIONAL"}
    silent = [
        name
        for name in indis.__all__
        if name not in plain and not (getattr(indis, name).__doc__ or "").strip()
    ]
    assert silent == []


def test_imports_keep_to_their_layers():
    command = Path(sys.executable).parent / "lint-imports"
    if not command.exists():
        pytest.skip("import-linter is not installed")
    result = subprocess.run([command, "--no-cache"], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout
    assert "1 kept, 0 broken" in result.stdout

"""The entry point: help without the library, syntax errors by tyro, one sentence for the rest."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

from cli.lines import FIT, TEACH, refused
from indis.cli import main as entry
from indis.cli.bench import EXPERIMENTS
from small_cases import contents


@pytest.mark.parametrize("words", [["--help"], ["bench"], ["bench", "--help"], ["--version"], []])
def test_help_fits_one_screen_and_loads_neither_torch_nor_tyro(words):
    code = (
        "import json, sys\n"
        "from indis.cli.main import run\n"
        f"code = run({words!r})\n"
        "heavy = {name.partition('.')[0] for name in sys.modules} & {'torch', 'tyro', 'numpy'}\n"
        "print(json.dumps([code, sorted(heavy)]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    *page, told = done.stdout.splitlines()
    assert json.loads(told) == [0 if words else 2, []]
    assert len(page) <= 24 and max(map(len, page)) <= 80


def test_every_command_is_where_the_table_says():
    for _, place in (*entry.COMMANDS.values(), *EXPERIMENTS.values()):
        module, _, attribute = place.partition(":")
        assert hasattr(__import__(f"indis.cli.{module}", fromlist=[attribute]), attribute)


@pytest.mark.parametrize(
    ("old", "new"),
    [("toy", "toy"), ("report", "report"), ("sight", "foresight"), ("train-model", "train")],
)
def test_a_moved_command_names_its_new_place(indis, work, old, new):
    said = refused(indis, f"{old} --out x")
    assert said == f"indis: error: `indis {old}` is now `indis bench {new}`\n"


@pytest.mark.parametrize(
    ("line", "part"),
    [
        ("tech --count 3", "command must be one of teach, fit, sample"),
        ("tech --count 3", "got 'tech': did you mean teach?"),
        ("bench comapre", "experiment must be one of compare, report"),
        ("bench comapre", "did you mean compare?"),
        (f"{TEACH} --count 4 --out ''", "--out must not be followed by an empty value"),
        (f"{TEACH} --count 4 --out=", "--out must not be followed by an empty value"),
        (f"fit --data data --out data {FIT}", "out must be another folder than data, got data"),
        (f"fit --data data --out ./data/../data {FIT}", "out must be another folder than data"),
        (f"{TEACH} --count 4 --out x --steps 1000000000", "steps must be in 1 ... 10000"),
        (
            "sample --model toy --steps 100000000 --out s.safetensors",
            "steps must be in 1 ... 10000",
        ),
        ("sample --model toy --count 4000000000 --out s.safetensors", "count must be in 1 ..."),
        ("sample --count 1001", "count must be in 1 ... 1000 for .png, got 1001"),
        (f"fit --data data --out x {FIT} --steps 1000000000", "steps must be in 1 ... 1000"),
        (f"fit --data data --out x {FIT} --steps 1-1000000000000", "rising range such as 3-10"),
        ("sample --model toy --device cuda:99999999999999999999 --out s.safetensors", "is absent"),
        ("sample --model toy --device cuda:\u0663 --out s.safetensors", "must be cpu, cuda or"),
        (f"fit --data data --out x {FIT} --seed -1", "seed must be at least 0, got -1"),
        ("bench toy --seed -1", "seed must be at least 0, got -1"),
        ("bench train --out x --seed -1", "seed must be at least 0, got -1"),
        ("bench compare --model toy --seeds 0 -1 --out x", "seeds must be at least 0, got -1"),
        ("bench paper --plan-only --seeds -1", "seeds must be at least 0, got -1"),
        ("bench paper --plan-only --steps 0", "steps must be at least one number"),
        ("bench paper --plan-only --methods ddim", "methods must be among"),
    ],
)
def test_what_the_library_refuses_is_one_sentence(indis, work, line, part):
    assert part in refused(indis, line)


@pytest.mark.parametrize(
    "line",
    [
        "fit --out x",
        "fit --data data --out x --stesp 3",
        "sample --count four",
        "sample 3",
        "bench toy --steps 3 four",
        "bench train --out x --what poem",
    ],
)
def test_syntax_errors_are_tyro_s_and_leave_no_file(indis, work, capsys, line):
    before = contents(work)
    with pytest.raises(SystemExit) as stop:
        indis(line)
    said = capsys.readouterr().err
    assert stop.value.code == 2 and "Traceback" not in said
    assert line.split()[0 if "bench" not in line else 1] in said
    assert contents(work) == before


OWN = """
import torch
from indis import Form, RectifiedFlow, Wrapped

def mean(text="0"):
    return Wrapped(lambda x, t, condition: torch.full_like(x, float(text)), RectifiedFlow(), (3,),
                   Form.DATA, name="mean", fingerprint=f"mean {text}")

def made():
    return mean("1")
"""


def test_a_model_of_the_user_s_own_can_be_taught_fitted_and_judged(indis, work, monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "own_mean", raising=False)
    (work / "own_mean.py").write_text(OWN)
    teach = "teach --solver euler --grid uniform --steps 4"
    for name, first in (("own", 0), ("other", 100)):
        line = f"{teach} --model own_mean:mean:2 --count 48 --first-seed {first} --out {name}"
        assert indis(line)[0] == 0
    # A file never decides what code runs.
    assert "add --model own_mean:mean:2" in refused(indis, f"fit --data own --out x {FIT}")
    assert "were made with weights mean 2" in refused(
        indis, f"fit --data own --out x {FIT} --model own_mean:made"
    )
    assert indis(f"fit --data own --out fit-own {FIT} --model own_mean:mean:2")[0] == 0
    assert "add --model own_mean:mean:2" in refused(
        indis, "sample --artifact fit-own --out s.safetensors"
    )
    which = "--artifact fit-own --model own_mean:mean:2"
    assert indis(f"sample {which} --count 2 --out s.safetensors")[0] == 0
    assert indis(f"evaluate {which} --heldout other --loss mse")[0] == 0
    assert indis(f"plan {which}")[0] == 0


def test_the_artifact_says_which_model_it_samples(indis, work):
    assert indis("sample --artifact fitted --count 2 --out s.safetensors")[0] == 0


def test_a_new_solver_is_named_on_every_help_page_that_takes_one(indis, capsys, monkeypatch):
    from indis.solvers import SOLVERS

    monkeypatch.setitem(SOLVERS, "brand_new", SOLVERS["euler"])
    for line in ("teach", "fit", "sample", "evaluate", "plan"):
        with pytest.raises(SystemExit):
            indis(f"{line} --help")
        assert "brand_new" in capsys.readouterr().out


def test_options_are_explained_in_one_line_which_help_can_wrap():
    """tyro would keep the line breaks of longer ones."""
    source = Path(entry.__file__).parent.parent
    broken = []
    for path in (*source.glob("cli/**/*.py"), *source.glob("methods/*.py"), source / "recipe.py"):
        for kind in ast.walk(ast.parse(path.read_text())):
            fields = (
                zip(kind.body, kind.body[1:], strict=False)
                if isinstance(kind, ast.ClassDef)
                else ()
            )
            for field, doc in fields:
                is_text = isinstance(doc, ast.Expr) and isinstance(doc.value, ast.Constant)
                if isinstance(field, ast.AnnAssign) and is_text and "\n" in doc.value.value:
                    broken.append(f"{path.name}: {ast.unparse(field.target)}")
    assert broken == []


def test_a_lack_of_memory_is_one_sentence(indis, work):
    line = "sample --model toy --count 1000000 --steps 1 --out s.safetensors --solver euler"
    huge = f"fit --data data --out x {FIT} --width 100000000"  # 40 petabytes
    assert "width must be at most" in refused(indis, huge)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("indis.cli.sample.drawn", lambda *_: bytearray(2**62))
        assert "out of memory: take smaller sizes" in refused(indis, line)

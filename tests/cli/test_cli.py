"""The command line from end to end on the toy, and what a person reads who asks for something impossible."""

import json
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from indis import Global, artifact, models, noise_from_seeds
from indis.cli import main as entry
from indis.cli.sample import save_grid
from indis.storage import load_json, load_tensors, save_json
from indis.teacher import load_endpoints
from indis.training import Fit
from small_cases import contents, flip_last_byte

TEACH = "teach --model toy --solver euler --grid uniform --steps 12 --shard 16"
STUDENT = "--steps 3 --solver euler --grid uniform --loss squared --width 8 --depth 1"
FIT = f"{STUDENT} --fit.iterations 8 --fit.batch 16 --fit.holdout 16 --fit.validate-every 2 --fit.lr 0.1"
COMMANDS = ["teach", "fit", "sample", "evaluate", "report", "toy", "budget", "compare", "demo", "train-model"]


@pytest.fixture
def indis(capsys, monkeypatch):
    """Run a command in this process: its exit code and what it said."""

    def run(line):
        words = shlex.split(line)
        monkeypatch.setattr(sys, "argv", ["indis", *words])
        code = entry.run(words)
        return code, capsys.readouterr().err

    return run


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """Endpoints of seeds 0 ... 47, held-out ones of 100 ... 119, and an artifact."""
    folder = tmp_path_factory.mktemp("prepared")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for line in (
            f"{TEACH} --count 48 --out data",
            f"{TEACH} --count 20 --first-seed 100 --out test",
            f"fit --data data --out fitted {FIT} --json fit.json",
        ):
            patch.setattr(sys, "argv", ["indis", *line.split()])
            assert entry.run(line.split()) == 0
    return folder


@pytest.fixture
def work(prepared, tmp_path, monkeypatch):
    """A copy of the prepared folder, as the current folder."""
    folder = shutil.copytree(prepared, tmp_path / "work")
    monkeypatch.chdir(folder)
    return folder


def refused(indis, line):
    """The sentence of a command that must fail without leaving any file."""
    before = contents(Path.cwd())
    code, said = indis(line)
    assert code == 2
    assert contents(Path.cwd()) == before
    assert said.startswith("indis: error: ") and said.count("\n") == 1 and len(said) < 400
    assert "Traceback" not in said
    return said


def test_from_seeds_to_numbers(indis, work):
    data, meta = load_endpoints(work / "data")
    assert data.seeds.tolist() == list(range(48))
    assert meta["provenance"]["nfe"] == 12

    outcome = load_json(work / "fit.json")
    assert [step for step, _ in outcome["curve"]] == [2, 4, 6, 8]
    assert outcome["heldout_loss"] <= min(value for _, value in outcome["curve"])
    assert outcome["parameters"] == (2 * 8 + 8) + (8 * 8 + 8) + 9 * (8 + 1)
    assert outcome["model"] == "toy" and outcome["teacher"] == meta["provenance"]

    code, said = indis("sample --model toy --artifact fitted --first-seed 7 --count 3 --out s.safetensors")
    assert code == 0 and "3 samples with 3 evaluations each" in said
    drawn, _ = load_tensors(work / "s.safetensors")
    sampler = artifact.load(work / "fitted")
    assert drawn["seeds"].tolist() == [7, 8, 9]
    expected = sampler(models.load("toy"), noise_from_seeds([7, 8, 9], (2,)))
    torch.testing.assert_close(drawn["samples"], expected, rtol=0, atol=1e-5)

    rows = {}
    for name, which in (("fitted", "--artifact fitted"), ("plain", "--steps 3 --solver euler --grid uniform")):
        assert indis(f"evaluate {which} --heldout test --loss squared --json {name}.json")[0] == 0
        rows[name] = load_json(work / f"{name}.json")
        assert (rows[name]["model"], rows[name]["steps"], rows[name]["nfe"], rows[name]["pairs"]) == ("toy", 3, 3, 20)
        assert rows[name]["heldout_loss"] == pytest.approx(2 * rows[name]["teacher_mse"])
    assert rows["fitted"]["heldout_loss"] < 0.7 * rows["plain"]["heldout_loss"]
    assert "fd" not in rows["plain"]


def test_the_analytic_first_step_costs_one_evaluation_less(indis, work):
    assert indis("evaluate --heldout test --loss mse --steps 4 --grid uniform --afs --json row.json")[0] == 0
    assert load_json(work / "row.json")["nfe"] == 3


def test_an_artifact_tells_how_it_was_made_without_naming_this_machine(work):
    text = (work / "fitted" / "config.json").read_text()
    provenance = json.loads(text)["provenance"]
    assert provenance["command"].startswith("indis fit --data data --out fitted")
    assert provenance["config"]["fit"]["lr"] == 0.1
    assert '"/' not in text and str(Path.home()) + "/" not in text


def test_teaching_and_fitting_again_change_nothing(indis, work):
    before = contents(work)
    assert indis(f"{TEACH} --count 48 --out data")[0] == 0
    code, said = indis(f"fit --data data --out fitted {FIT} --json fit.json")
    assert code == 0 and "resuming at iteration 8 of 8" in said
    assert contents(work) == before


def test_an_interrupted_fit_says_so_and_goes_on_to_the_same_weights(indis, work, monkeypatch):
    run = Fit.run

    def interrupted(self):
        for state in run(self):
            yield state
            if state.step == 5:
                raise KeyboardInterrupt

    monkeypatch.setattr(Fit, "run", interrupted)
    code, said = indis(f"fit --data data --out again {FIT} --save-every 2")
    assert code == 130 and "interrupted" in said
    assert list(contents(work / "again")) == ["checkpoint.safetensors", "curve.json"]
    monkeypatch.setattr(Fit, "run", run)
    code, said = indis(f"fit --data data --out again {FIT} --save-every 2")
    assert code == 0 and "resuming at iteration 4 of 8" in said
    assert (work / "again/policy.safetensors").read_bytes() == (work / "fitted/policy.safetensors").read_bytes()
    assert load_json(work / "again" / "curve.json") == load_json(work / "fit.json")["curve"]


def test_an_interrupted_teacher_goes_on_to_the_same_bytes(indis, work, monkeypatch):
    from indis.cli import teach as module

    whole = module.teach

    def interrupted(*arguments, **keywords):
        yield next(whole(*arguments, **keywords))
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "teach", interrupted)
    assert indis(f"{TEACH} --count 48 --out again")[0] == 130
    assert list(contents(work / "again")) == ["endpoints-00000.safetensors", "meta.json"]
    assert "1 of 3 shards" in refused(indis, f"fit --data again --out other {FIT}")
    monkeypatch.setattr(module, "teach", whole)
    assert indis(f"{TEACH} --count 48 --out again")[0] == 0
    assert contents(work / "again") == contents(work / "data")


def test_a_global_plan_fitted_to_all_endpoints_reports_no_heldout_loss(indis, work):
    options = "--no-per-instance --fit.iterations 3 --fit.holdout 0 --json god.json"
    code, said = indis(f"fit --data data --out god {STUDENT} {options}")
    assert code == 0 and "inf" not in said and "9 parameters" in said
    assert load_json(work / "god.json")["heldout_loss"] is None
    assert isinstance(artifact.load(work / "god").policy, Global)


def test_phi_can_start_at_a_fitted_global_plan(indis, work):
    assert indis(f"fit --data data --out god {FIT} --no-per-instance")[0] == 0
    assert indis(f"fit --data data --out phi {FIT} --start god --fit.lr 1e-9")[0] == 0
    assert indis(f"fit --data data --out base {FIT} --fit.lr 1e-9")[0] == 0
    told = [artifact.load_config(work / name)["provenance"]["heldout_loss"] for name in ("god", "phi", "base")]
    assert told[1] == pytest.approx(told[0], rel=1e-4)
    assert told[1] < 0.9 * told[2]


KNOWN_SOLVERS = ["euler", "heun", "ipndm", "adams_bashforth", "deis", "dpmpp", "unipc"]
BAD = {
    "teach: unknown solver": ("teach --model toy --solver rk --out x", ["'rk'", *KNOWN_SOLVERS]),
    "teach: unknown grid": ("teach --model toy --grid even --out x", ["'even'", "uniform", "polynomial", "vp_time"]),
    "teach: unknown model": ("teach --model flux --out x", ["'flux'", "toy", "fashion"]),
    "teach: unknown class": ("teach --model toy:C --out x", ["'C'", "AB"]),
    "teach: no steps": ("teach --model toy --steps 0 --out x", ["steps must be at least 1, got 0"]),
    "teach: no seeds": ("teach --model toy --count 0 --out x", ["count must be at least 1, got 0"]),
    "teach: other config": (f"{TEACH} --count 49 --out data", ["data holds endpoints with another config"]),
    "teach: other teacher": (
        f"{TEACH.replace('12', '13')} --count 48 --out data",
        ["data holds endpoints with another provenance"],
    ),
    "teach: below a file": (f"{TEACH} --count 4 --out fit.json/x", ["fit.json/x"]),
    "teach: onto a file": (f"{TEACH} --count 4 --out fit.json", ["fit.json is a file"]),
    "fit: no endpoints": (f"fit --data nowhere --out x {FIT}", ["nowhere", "run `indis teach` first"]),
    "fit: no steps": ("fit --data data --out x --steps 0", ["steps must be at least 1, got 0"]),
    "fit: unknown solver": ("fit --data data --out x --solver rk", ["'rk'", *KNOWN_SOLVERS]),
    "fit: bad order": ("fit --data data --out x --solver ipndm:7", ["order must be 1, 2, 3 or 4, got 7"]),
    "fit: unknown grid": ("fit --data data --out x --grid even", ["'even'", "uniform"]),
    "fit: unknown loss": ("fit --data data --out x --loss l1", ["'l1'", "mse", "squared", "fashion", "lpips"]),
    "fit: loss of images": (f"fit --data data --out x {FIT.replace('squared', 'fashion')}", ["grey images"]),
    "fit: all held out": ("fit --data data --out x --loss mse --fit.holdout 48", ["holdout", "48 of 48"]),
    "fit: bad bound": ("fit --data data --out x --loss mse --fit.holdout 8 --gamma 1", ["gamma must be in [0, 1)"]),
    "fit: never saved": (f"fit --data data --out x {FIT} --save-every 0", ["save-every must be at least 1, got 0"]),
    "fit: resume another": (f"fit --data data --out fitted {FIT} --fit.seed 1", ["written with another configuration"]),
    "fit: resume other data": (f"fit --data test --out fitted {FIT}", ["written with another configuration"]),
    "fit: start is no artifact": (f"fit --data data --out x {FIT} --start x", ["x is not an artifact"]),
    "fit: start is no global plan": (f"fit --data data --out x {FIT} --start fitted", ["must be a fitted global plan"]),
    "fit: below a file": (f"fit --data data --out fit.json/x {FIT}", ["fit.json/x"]),
    "fit: json below a file": (f"fit --data data --out x {FIT} --json fit.json/x", ["fit.json is a file"]),
    "fit: json onto a folder": (f"fit --data data --out x {FIT} --json data", ["data is a folder"]),
    "sample: no artifact": ("sample --model toy --artifact x --out s.safetensors", ["artifact", "x"]),
    "sample: another model": (
        "sample --model fashion --artifact fitted --out s.safetensors",
        ["fitted needs a model with schedule RectifiedFlow", "fashion has EDM"],
    ),
    "sample: no steps": ("sample --model toy --steps 0 --out s.safetensors", ["steps must be at least 1, got 0"]),
    "sample: no seeds": ("sample --model toy --count 0 --out s.safetensors", ["count must be at least 1, got 0"]),
    "sample: to .jpg": ("sample --model toy --out s.jpg", [".png or .safetensors", "s.jpg"]),
    "sample: points as picture": ("sample --model toy --out s.png", ["only images can be drawn", "use .safetensors"]),
    "sample: below a file": ("sample --model toy --out fit.json/s.safetensors", ["fit.json is a file"]),
    "evaluate: nothing": ("evaluate", ["nothing to do", "--heldout", "--samples"]),
    "evaluate: one sample": ("evaluate --samples 1", ["nothing to do"]),
    "evaluate: one sample besides": ("evaluate --heldout test --loss mse --samples 1", ["samples must be", "got 1"]),
    "evaluate: no endpoints": ("evaluate --heldout x", ["x holds no endpoints"]),
    "evaluate: no artifact": ("evaluate --heldout test --artifact x", ["artifact", "x"]),
    "evaluate: unknown loss": ("evaluate --heldout test --loss l1", ["'l1'", "squared"]),
    "evaluate: loss of images": ("evaluate --heldout test", ["grey images"]),
    "evaluate: FD of points": ("evaluate --heldout test --loss mse --samples 4", ["grey images"]),
    "evaluate: negative": ("evaluate --heldout test --loss mse --samples -4", ["samples must be", "-4"]),
    "evaluate: json below a file": ("evaluate --heldout test --loss mse --json fit.json/x", ["fit.json is a file"]),
    "toy: unknown freedoms": ("toy --freedoms sigma", ["sigma", "tau+dtau+gamma"]),
    "toy: no steps": ("toy --steps 3 0", ["steps must be at least 1"]),
    "toy: unknown class": ("toy --classes C", ["'C'", "AB"]),
    "toy: below a file": ("toy --quick --out fit.json/x", ["fit.json/x"]),
    "toy: json below a file": ("toy --quick --json fit.json/x", ["fit.json is a file"]),
    "compare: unknown model": ("compare --out x --model flux", ["'flux'", "toy", "fashion"]),
    "compare: unknown method": ("compare --out x --methods sigma", ["sigma", "god", "indis", "ablation"]),
    "compare: unknown grid": ("compare --out x --grids even", ["'even'", "uniform"]),
    "compare: no calls": ("compare --out x --steps 0", ["nfe must be at least 1"]),
    "compare: bf16 without network": ("compare --out x --model toy --bf16", ["bf16 must be left out for toy"]),
    "fit: unknown method": ("fit --method sigma --data data --out x", ["'sigma'", "indis", "god", "look"]),
    "report: no folder": ("report --run nowhere", ["nowhere"]),
    "report: nothing in it": ("report --run data", ["data", "nothing|no results"]),
    "train-model: no data": ("train-model --out x --data test", ["train-images-idx3-ubyte.gz is missing"]),
    "train-model: no images": ("train-model --out x --images 0", ["images must be at least 1"]),
    "train-model: never saved": ("train-model --out x --save-every 0", ["save-every must be at least 1"]),
}


@pytest.mark.parametrize(("line", "parts"), BAD.values(), ids=BAD)
def test_bad_input_is_one_sentence_and_leaves_no_file(indis, work, line, parts):
    said = refused(indis, line)
    for part in parts:
        assert any(choice in said for choice in part.split("|")), said


@pytest.mark.parametrize("command", [f"fit --data data --out x {FIT}", "evaluate --heldout data --loss mse"])
def test_damaged_endpoints_are_named(indis, work, command):
    flip_last_byte(work / "data" / "endpoints-00001.safetensors")
    assert "data/endpoints-00001.safetensors is damaged" in refused(indis, command)
    (work / "data" / "endpoints-00001.safetensors").unlink()
    assert "data/endpoints-00001.safetensors is missing" in refused(indis, command)


def test_a_damaged_shard_is_not_resumed_from(indis, work):
    flip_last_byte(work / "data" / "endpoints-00001.safetensors")
    assert "data/endpoints-00001.safetensors is damaged" in refused(indis, f"{TEACH} --count 48 --out data")


@pytest.mark.parametrize(
    "command",
    [
        "evaluate --heldout test --loss mse --artifact fitted",
        "sample --model toy --artifact fitted --out s.safetensors",
    ],
)
def test_a_damaged_artifact_is_named(indis, work, command):
    weights, config = work / "fitted" / "policy.safetensors", work / "fitted" / "config.json"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    assert "fitted/policy.safetensors is damaged" in refused(indis, command)
    weights.unlink()
    assert "fitted/policy.safetensors does not exist" in refused(indis, command)
    config.write_text("{")
    assert "fitted/config.json is not valid JSON" in refused(indis, command)


def test_endpoints_that_name_no_model_are_refused(indis, work):
    meta = load_json(work / "data" / "meta.json")
    save_json(work / "data" / "meta.json", meta | {"provenance": {}})
    for command in (f"fit --data data --out x {FIT}", "evaluate --heldout data --loss mse"):
        assert "name no model" in refused(indis, command)


def test_a_damaged_checkpoint_is_named(indis, work):
    (work / "fitted" / "checkpoint.safetensors").write_bytes(b"no")
    assert "fitted/checkpoint.safetensors is damaged" in refused(indis, f"fit --data data --out fitted {FIT}")


@pytest.mark.parametrize(
    "line", ["sample --count many", "frobnicate", "", "fit --out x", "train-model --out x --what poem", "toy --fast"]
)
def test_words_that_no_command_knows_exit_with_two(indis, line):
    with pytest.raises(SystemExit) as error:
        indis(line)
    assert error.value.code == 2


def test_settings_of_the_fit_that_make_no_sense_are_told_in_the_box_of_the_parser(indis, capsys, tmp_path):
    with pytest.raises(SystemExit) as error:
        indis(f"fit --data data --out {tmp_path}/x --fit.lr 0")
    said = capsys.readouterr().err
    assert error.value.code == 2
    assert "lr and clip must be positive" in said and "Traceback" not in said
    assert contents(tmp_path) == {}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(indis, capsys, command):
    with pytest.raises(SystemExit) as error:
        indis(f"{command} --help")
    assert error.value.code == 0
    text = capsys.readouterr().out
    assert f"usage: indis {command}" in text


def test_a_bug_keeps_its_traceback(indis, monkeypatch):
    def broken(spec):
        raise RuntimeError("a bug")

    monkeypatch.setattr(models, "load", broken)
    with pytest.raises(RuntimeError, match="a bug"):
        indis("sample --model toy --out s.safetensors")


def module(*words, cwd):
    command = [sys.executable, "-m", "indis", *words]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=120)


def test_the_module_lists_its_commands(tmp_path):
    result = module("--help", cwd=tmp_path)
    assert result.returncode == 0
    assert all(command in result.stdout for command in COMMANDS)


def test_the_module_fails_with_one_sentence(tmp_path):
    result = module("sample", "--model", "flux", cwd=tmp_path)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == "indis: error: model must be one of toy, fashion, got 'flux'\n"
    assert contents(tmp_path) == {}


def test_pictures_are_laid_out_ten_a_row_and_enlarged(tmp_path):
    image = pytest.importorskip("PIL.Image")
    samples = torch.linspace(-1, 1, 12)[:, None, None, None].expand(12, 1, 4, 5)
    save_grid(samples, tmp_path / "s.png")
    picture = image.open(tmp_path / "s.png").convert("RGB")
    assert picture.size == (10 * 5 * 3, 2 * 4 * 3)
    centres = [picture.getpixel((15 * column + 7, 12 * row + 6)) for row, column in ((0, 0), (0, 9), (1, 1), (1, 5))]
    assert [c[0] for c in centres] == [0, 209, 255, 0]
    assert all(c[0] == c[1] == c[2] for c in centres)
    assert list(contents(tmp_path)) == ["s.png"]


@pytest.fixture(scope="module")
def toy_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("toy")
    sizes = "--priors 200 --reference 2000 --width 32 --depth 2 --oracle-iterations 8"
    rates = "--global-iterations 60 --instance-iterations 100 --instance-batch 100"
    line = f"toy --steps 3 --freedoms tau+dtau+gamma {sizes} {rates} --out {folder}/run --json {folder}/cells.json"
    assert entry.run(line.split()) == 0
    return folder


def test_the_toy_study_orders_the_policies(toy_run):
    cells = load_json(toy_run / "cells.json")["cells"]
    distance = {(c["policy"], c["split"]): c["squared_distance"] for c in cells}
    assert len(distance) == len(cells) == 7
    for split in ("train", "heldout"):
        assert distance["instance", split] < 0.7 * distance["global", split]
        assert distance["global", split] < 0.7 * distance["uniform", split]
    assert distance["oracle", "train"] < distance["instance", "train"]


def test_the_toy_study_writes_the_documented_cells(toy_run):
    result = load_json(toy_run / "cells.json")
    assert result == load_json(toy_run / "run" / "toy.json")
    assert result["study"] == "toy" and result["config"]["priors"] == 200
    judged = ["squared_distance", "kl", "kl_floor", "w1", "w1_floor"]
    made = ["priors", "classes", "tree_seed", "seed", "parameters", "fit_seconds"]
    keys = ["policy", "freedoms", "steps", "nfe", "split", *judged, *made]
    learned = "tau+dtau+gamma"
    rows = [("uniform", "tau", 0), ("global", learned, 9), ("instance", learned, None)]
    expected = [(p, f, s) for p, f, _ in rows for s in ("train", "heldout")] + [("oracle", learned, "train")]
    assert [(c["policy"], c["freedoms"], c["split"]) for c in result["cells"]] == expected
    for cell in result["cells"]:
        assert list(cell) == keys
        assert (cell["steps"], cell["nfe"], cell["priors"], cell["classes"]) == (3, 3, 200, "A")
        assert 0 < cell["w1_floor"] < cell["w1"] and cell["kl_floor"] > 0
    parameters = {c["policy"]: c["parameters"] for c in result["cells"]}
    assert (parameters["uniform"], parameters["global"], parameters["oracle"]) == (0, 9, 200 * 9)


def test_the_scatter_of_the_toy_study_averages_to_its_cells(toy_run):
    tensors, _ = load_tensors(toy_run / "run" / "toy_scatter.safetensors")
    for cell in load_json(toy_run / "cells.json")["cells"]:
        errors = tensors[f"error {cell['policy']} {cell['freedoms']} {cell['split']}"]
        assert errors.mean().item() == pytest.approx(cell["squared_distance"], rel=1e-4)
    assert torch.equal(tensors["noise_heldout"], noise_from_seeds(range(200, 400), (2,)))


def test_a_report_of_the_toy_study_names_its_policies(indis, toy_run):
    pytest.importorskip("jinja2")
    pytest.importorskip("matplotlib")
    code, said = indis(f"report --run {toy_run}/run --out {toy_run}/report.html")
    assert code == 0 and "toy" in said
    page = (toy_run / "report.html").read_text()
    assert all(name in page for name in ("uniform", "global", "instance", "oracle"))

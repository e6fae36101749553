"""The command line from end to end on the toy."""

import json
import math
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from cli.lines import FIT, STUDENT, TEACH, refused
from indis import (
    Fixed,
    Sampler,
    __version__,
    artifact,
    heuristic,
    losses,
    models,
    noise_from_seeds,
)
from indis.bench.train_fashion import Trainer
from indis.cli import main as entry
from indis.cli.bench import EXPERIMENTS
from indis.cli.bench.budget import Budget
from indis.cli.bench.toy import ToyCommand
from indis.cli.bench.train import TrainModel
from indis.cli.console import Reporting
from indis.cli.pictures import Strip, save_sheet
from indis.cli.sample import FixedLabels, captions
from indis.endpoints import load_endpoints
from indis.grids import NAMES
from indis.losses import squared_distance
from indis.methods import METHODS
from indis.solvers import SOLVERS, Euler
from indis.storage import load_json, load_tensors
from indis.tuning import Fit, Search
from small_cases import contents


def test_from_seeds_to_numbers(indis, work):
    data, meta = load_endpoints(work / "data")
    assert data.seeds.tolist() == list(range(48))
    assert meta["provenance"]["nfe"] == 12

    outcome = load_json(work / "fit.json")
    assert [step for step, _ in outcome["curve"]] == [2, 4, 6, 8]
    assert outcome["heldout_loss"] <= min(value for _, value in outcome["curve"])
    assert outcome["parameters"] == (2 * 8 + 8) + (8 * 8 + 8) + 9 * (8 + 1)
    assert outcome["model"] == "toy" and outcome["teacher"] == meta["provenance"]

    code, said = indis(
        "sample --model toy --artifact fitted --first-seed 7 --count 3 --out s.safetensors"
    )
    assert code == 0 and "3 samples with 3 evaluations each" in said
    drawn, _ = load_tensors(work / "s.safetensors")
    sampler = artifact.load(work / "fitted")
    assert drawn["seeds"].tolist() == [7, 8, 9]
    expected = sampler(models.load("toy"), noise_from_seeds([7, 8, 9], (2,)))
    torch.testing.assert_close(drawn["samples"], expected, rtol=0, atol=1e-5)

    rows = {}
    for name, which in (
        ("fitted", "--artifact fitted"),
        ("plain", "--steps 3 --solver euler --grid uniform"),
    ):
        assert indis(f"evaluate {which} --heldout test --loss squared --json {name}.json")[0] == 0
        rows[name] = load_json(work / f"{name}.json")["rows"][0]
        assert (
            rows[name]["model"],
            rows[name]["steps"],
            rows[name]["nfe"],
            rows[name]["pairs"],
        ) == ("toy", 3, 3, 20)
        assert rows[name]["heldout_loss"] == pytest.approx(2 * rows[name]["teacher_mse"])
    assert rows["fitted"]["heldout_loss"] < 0.7 * rows["plain"]["heldout_loss"]
    assert "fd" not in rows["plain"]


def test_labels_are_taken_in_turn_by_the_seeds(indis, work):
    options = "--first-seed 7 --count 3 --steps 1 --grid uniform --out"
    assert indis(f"sample --label 3 5 {options} two.safetensors")[0] == 0
    assert indis(f"sample --label 5 {options} one.safetensors")[0] == 0
    assert indis(f"sample {options} own.safetensors")[0] == 0
    two, one, own = (
        load_tensors(work / f"{name}.safetensors")[0]["samples"] for name in ("two", "one", "own")
    )
    model = models.load("fashion")
    sampler = heuristic(model, solver="ipndm:3", grid="uniform", steps=1)
    noise = noise_from_seeds([7, 8, 9], model.shape)
    torch.testing.assert_close(
        two, sampler(model, noise, model.class_condition([5, 3, 5])), rtol=0, atol=1e-5
    )
    torch.testing.assert_close(
        own, sampler(model, noise, model.class_condition([7, 8, 9])), rtol=0, atol=1e-5
    )
    torch.testing.assert_close(two[::2], one[::2], rtol=0, atol=1e-5)
    assert (two[1] - one[1]).abs().max() > 0.1


def test_the_analytic_first_step_costs_one_evaluation_less(indis, work):
    assert (
        indis("evaluate --heldout test --loss mse --steps 4 --grid uniform --afs --json row.json")[
            0
        ]
        == 0
    )
    row = load_json(work / "row.json")["rows"][0]
    assert (row["nfe"], row["calls"]) == (3, 3)


def test_evaluations_at_the_same_time_count_once_as_in_a_comparison(indis, work):
    # Two steps of a node and two midpoints that are asked together: 2 * 3 calls, 2 * 2 one after
    # another.
    plain = "--model toy --solver midpoint:2 --grid uniform --steps 6"
    code, said = indis(f"evaluate {plain} --heldout test --loss mse --json row.json")
    row = load_json(work / "row.json")["rows"][0]
    assert code == 0 and (row["steps"], row["nfe"], row["calls"]) == (6, 4, 6)
    assert re.search(r"nfe +4\n", said) and re.search(r"calls +6\n", said)
    code, said = indis(f"sample {plain} --count 3 --out s.safetensors")
    assert code == 0 and "3 samples with 4 evaluations one after another, 6 in all, each in" in said


def test_a_list_of_times_is_a_grid_for_solvers_teachers_and_fits(indis, work):
    times = "list:0.987654,0.6,0.3,0.00199602"
    plain = f"--model toy --solver euler --grid {times} --steps 3"
    assert indis(f"sample {plain} --count 2 --out s.safetensors")[0] == 0
    drawn, _ = load_tensors(work / "s.safetensors")
    model, tau = (
        models.load("toy"),
        torch.tensor([[0.987654, 0.6, 0.3, 0.00199602]], dtype=torch.float64),
    )
    expected = Sampler(Fixed(tau), Euler())(model, noise_from_seeds([0, 1], (2,)))
    torch.testing.assert_close(drawn["samples"], expected, rtol=0, atol=1e-6)
    assert indis(f"teach {plain} --count 4 --out taught")[0] == 0
    assert load_endpoints(work / "taught")[1]["provenance"]["grid"] == times
    assert indis(f"fit --data data --out listed {FIT} --grid {times}")[0] == 0
    assert artifact.load_config(work / "listed")["provenance"]["config"]["grid"] == times
    assert indis("evaluate --artifact listed --heldout test --loss mse")[0] == 0


def test_an_artifact_tells_how_it_was_made_without_naming_this_machine(work):
    text = (work / "fitted" / "config.json").read_text()
    provenance = json.loads(text)["provenance"]
    assert provenance["command"].startswith("indis fit --data data --out fitted")
    assert provenance["config"]["recipe"]["lr"] == 0.1
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
            if state.step == 4:
                signal.raise_signal(
                    signal.SIGINT
                )  # what Ctrl-C does, in the middle of the fifth iteration

    monkeypatch.setattr(Fit, "run", interrupted)
    code, said = indis(f"fit --data data --out again {FIT}")
    assert code == 130 and "interrupted; what was finished is kept" in said
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert list(contents(work / "again")) == ["checkpoint.safetensors", "curve.json"]
    monkeypatch.setattr(Fit, "run", run)
    code, said = indis(f"fit --data data --out again {FIT}")
    assert code == 0 and "resuming at iteration 5 of 8" in said
    assert (work / "again/policy.safetensors").read_bytes() == (
        work / "fitted/policy.safetensors"
    ).read_bytes()
    assert load_json(work / "again" / "curve.json") == load_json(work / "fit.json")["curve"]


def test_a_second_interrupt_and_one_of_a_search_stop_at_once(indis, work, monkeypatch):
    def pressed(times):
        def run(self):
            for _ in range(times):
                signal.raise_signal(signal.SIGINT)
            raise AssertionError("not stopped")
            yield

        return run

    monkeypatch.setattr(Fit, "run", pressed(2))
    assert indis(f"fit --data data --out again {FIT}")[0] == 130
    monkeypatch.setattr(Search, "run", pressed(1))
    assert (
        indis("fit --method gits --data data --out again --steps 3 --loss squared --holdout 16")[0]
        == 130
    )
    assert contents(work / "again") == {}


@pytest.mark.parametrize(
    "line",
    [
        "bench toy --quick",
        "bench budget --artifact x --data x --heldout x --out x",
        "bench train --what features --out x",
    ],
)
def test_commands_that_keep_nothing_say_so(indis, monkeypatch, line):
    def interrupted(self):
        raise KeyboardInterrupt

    for command in (ToyCommand, Budget, TrainModel):
        monkeypatch.setattr(command, "run", interrupted)
    assert indis(line) == (130, "indis: interrupted; nothing is kept, it begins again\n")


def test_a_fit_that_stops_being_finite_keeps_its_best_checkpoint(indis, work, monkeypatch):
    asked = []

    def spoiled(student, teacher):
        value = squared_distance(student, teacher)
        asked.append(student.requires_grad)
        return value * math.nan if student.requires_grad and sum(asked) > 7 else value

    monkeypatch.setitem(losses.LOSSES, "squared", lambda: spoiled)
    line = f"fit --data data --out broken {FIT} --iterations 20 --validate-every 2"
    code, said = indis(line)
    assert (code, said.splitlines()[-1]) == (
        2,
        "indis: error: the loss or its gradient is not finite at iteration 7",
    )
    monkeypatch.undo()
    monkeypatch.chdir(work)
    code, said = indis(line)
    assert code == 0 and "resuming at iteration 6 of 20" in said


def test_an_interrupt_before_anything_is_finished_says_so(indis, work, monkeypatch):
    def interrupted(*arguments, **keywords):
        raise KeyboardInterrupt

    monkeypatch.setattr("indis.endpoints.folder.teach", interrupted)  # within the first shard
    monkeypatch.setattr(TrainModel, "_denoiser", interrupted)
    monkeypatch.setattr(Fit, "run", interrupted)
    monkeypatch.setattr(ToyCommand, "run", interrupted)
    monkeypatch.setattr("indis.cli.bench.demo.Demo._picture", interrupted)
    commands = (
        "bench train",
        f"{TEACH} --count 48",
        "bench compare --model toy",
        f"fit --data data {FIT}",
        "demo",
    )
    for line in commands:
        code, said = indis(f"{line} --out new")
        assert code == 130 and said.endswith(
            "indis: interrupted; nothing was finished yet, it begins again\n"
        ), line
    assert not (work / "new").exists()
    code, said = indis(f"{TEACH} --count 64 --out data")
    assert code == 130 and "what was finished is kept" in said


def test_an_interrupted_training_keeps_the_step_that_it_was_in(indis, tmp_path, monkeypatch):
    pytest.importorskip("diffusers")
    images = torch.zeros(4, 1, 28, 28, dtype=torch.uint8), torch.zeros(4, dtype=torch.int64)
    monkeypatch.setattr("indis.cli.bench.train.read", lambda split, folder: images)
    monkeypatch.chdir(tmp_path)
    run, line = Trainer.run, "bench train --images 3 --batch 1 --warmup 1"
    assert indis(f"{line} --out whole")[0] == 0

    def interrupted(self, *data):
        for state in run(self, *data):
            yield state
            if state.step == 1:
                signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(Trainer, "run", interrupted)
    code, said = indis(f"{line} --out again")
    assert code == 130 and "what was finished is kept" in said
    monkeypatch.setattr(Trainer, "run", run)
    code, said = indis(f"{line} --out again")
    assert code == 0 and "resuming at step 2 of 3" in said
    weights = [
        (tmp_path / name / "fashion.safetensors").read_bytes() for name in ("whole", "again")
    ]
    assert weights[0] == weights[1]


def test_a_fit_says_where_it_began_and_which_iteration_was_best(indis, work):
    code, said = indis(f"fit --data data --out again {FIT} --json again.json")
    told = load_json(work / "again.json")
    value, step = min((value, step) for step, value in told["curve"])
    start = f"held-out squared: start {told['initial_loss']:.5f}"
    result = f"{start} -> best {value:.5f} at iteration {step}\n"
    assert code == 0 and result in said and told["initial_loss"] > value == told["heldout_loss"]
    code, said = indis(f"fit --data data --out again {FIT} --json again.json")  # which only resumes
    assert code == 0 and result in said and load_json(work / "again.json") == told


def test_a_fit_that_was_never_better_than_its_start_says_so(indis, work):
    code, said = indis(f"fit --data data --out worse {FIT} --lr 1e3 --json worse.json")
    told = load_json(work / "worse.json")
    assert code == 0 and told["heldout_loss"] == told["initial_loss"] < min(
        value for _, value in told["curve"]
    )
    assert (
        f"nothing improved on the start: held-out squared began at {told['initial_loss']:.5f}"
        in said
    )


def test_an_interrupted_teacher_goes_on_to_the_same_bytes(indis, work, monkeypatch):
    from indis.cli import teach as module

    whole = module.teach_folder

    def interrupted(*arguments, **keywords):
        yield next(whole(*arguments, **keywords))
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "teach_folder", interrupted)
    assert indis(f"{TEACH} --count 48 --out again")[0] == 130
    assert list(contents(work / "again")) == ["endpoints-00000.safetensors", "meta.json"]
    assert "1 of 3 shards" in refused(indis, f"fit --data again --out other {FIT}")
    monkeypatch.setattr(module, "teach_folder", whole)
    assert indis(f"{TEACH} --count 48 --out again")[0] == 0
    assert contents(work / "again") == contents(work / "data")


def test_a_global_plan_fitted_to_all_endpoints_reports_no_heldout_loss(indis, work):
    options = "--reads nothing --iterations 3 --holdout 0 --json god.json"
    code, said = indis(f"fit --data data --out god {STUDENT} {options}")
    assert code == 0 and "inf" not in said and "9 parameters" in said
    assert load_json(work / "god.json")["heldout_loss"] is None
    assert artifact.load(work / "god").policy.shared_plan().steps == 3


def test_phi_can_start_at_a_fitted_global_plan(indis, work):
    assert indis(f"fit --data data --out god {FIT} --reads nothing")[0] == 0
    assert indis(f"fit --data data --out phi {FIT} --start god --lr 1e-9")[0] == 0
    assert indis(f"fit --data data --out base {FIT} --lr 1e-9")[0] == 0
    told = [
        artifact.load_config(work / name)["provenance"]["heldout_loss"]
        for name in ("god", "phi", "base")
    ]
    assert told[1] == pytest.approx(told[0], rel=1e-4)
    assert told[1] < 0.9 * told[2]


COMMANDS = [*entry.COMMANDS, *(f"bench {name}" for name in EXPERIMENTS)]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(indis, capsys, command):
    with pytest.raises(SystemExit) as error:
        indis(f"{command} --help")
    assert error.value.code == 0
    text = capsys.readouterr().out
    assert f"usage: indis {command}" in text
    head = text.partition("\n\n")[2].partition(" options ")[0].partition(" positional ")[0]
    assert max(map(len, head.splitlines()[:-1])) <= 80


def test_a_bug_keeps_its_traceback(indis, monkeypatch):
    def broken(spec, device):
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
    assert all(f"\n  {command} " in result.stdout for command in [*entry.COMMANDS, "bench"])
    result = module("bench", cwd=tmp_path)
    assert result.returncode == 0
    assert all(f"\n  {name} " in result.stdout for name in EXPERIMENTS)


def test_the_module_fails_with_one_sentence(tmp_path):
    result = module("sample", "--model", "flux", cwd=tmp_path)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == (
        "indis: error: model must be one of diffusers, edm, fashion, galaxies, toy or "
        "module:function, "
        "got 'flux'\n"
    )
    assert contents(tmp_path) == {}


def sheet(tmp_path, *strips, captions):
    image = pytest.importorskip("PIL.Image")
    save_sheet(strips, captions, tmp_path / "s.png")
    assert list(contents(tmp_path)) == ["s.png"]
    return image.open(tmp_path / "s.png").convert("RGB")


def pictures_in(sheet):
    """The side lengths and grey levels of the plain squares on a white sheet, row by row."""
    pixels = torch.tensor(np.asarray(sheet))
    inside = (pixels[:, :, 0] == pixels[:, :, 2]) & (pixels[:, :, 0] == 77)
    return pixels, inside


def test_a_picture_is_labelled_and_has_no_filler_cells(tmp_path):
    grey = torch.full((12, 1, 4, 4), 2 * 77 / 255 - 1)
    captions = [f"seed {seed}" for seed in range(12)]
    pixels, inside = pictures_in(
        sheet(tmp_path, Strip(grey, "plain, 3 evaluations"), captions=captions)
    )
    assert int(inside.sum()) >= 12 * 96 * 96  # 12 pictures of 24 times 4 pixels, and no thirteenth
    assert int(inside.sum()) < 12.5 * 96 * 96
    assert (pixels[-1] == 255).all() and (pixels[:, -1] == 255).all()
    row = inside.any(1).nonzero().max()
    assert (pixels[row, -200:] == 255).all()  # the last row has two pictures, and white beside them


def test_strips_stand_below_each_other_and_the_heading_says_which_is_which(tmp_path):
    one, two = torch.full((3, 1, 28, 28), -1.0), torch.full((3, 1, 28, 28), 1.0)
    captions = ["a", "b", "c"]
    both = sheet(tmp_path, Strip(one, "student"), Strip(two, "teacher"), captions=captions)
    alone = sheet(tmp_path, Strip(one, "student"), captions=captions)
    assert both.height - alone.height > 28 * 4
    column = [both.getpixel((60, y))[0] for y in range(both.height)]
    assert column.count(0) == 28 * 4  # the student's; the teacher's is white on white


def test_a_teacher_s_samples_of_the_same_seeds_are_shown_on_request(indis, work):
    plain = "--model fashion --steps 2 --count 3"
    assert indis(f"sample {plain} --teacher --out s.safetensors")[0] == 0
    drawn, _ = load_tensors(work / "s.safetensors")
    model = models.load("fashion")
    many = heuristic(model, solver="ipndm:3", grid="natural", steps=30)
    expected = many(model, noise_from_seeds([0, 1, 2], model.shape), model.condition([0, 1, 2]))
    torch.testing.assert_close(drawn["teacher"], expected, rtol=0, atol=1e-4)
    assert drawn["samples"].shape == drawn["teacher"].shape


def test_captions_name_class_and_seed():
    model = models.load("fashion")
    assert captions(model, [9, 10]) == ["ankle boot, seed 9", "T-shirt, seed 10"]
    assert captions(FixedLabels(model, [10, 2]), [0, 1]) == [
        "any class, seed 0",
        "pullover, seed 1",
    ]
    assert captions(models.load("toy"), [4]) == ["seed 4"]


def test_the_help_of_fit_names_every_method(indis, capsys):
    with pytest.raises(SystemExit):
        indis("fit --help")
    # The box wraps and pads, so words are compared, not lines.
    words = set(capsys.readouterr().out.replace(",", " ").replace(".", " ").split())
    assert set(METHODS) <= words


def explained(capsys, monkeypatch, line):
    """The lines of a help page so wide that nothing wraps but what has no room beside its name."""
    monkeypatch.setenv("COLUMNS", "1000")
    with pytest.raises(SystemExit):
        entry.run([*line.split(), "--help"])
    return [text.strip("│ ") for text in capsys.readouterr().out.splitlines()]


@pytest.mark.parametrize("line", [*COMMANDS, *(f"fit --method {name}" for name in METHODS)])
def test_no_option_goes_without_a_word(capsys, monkeypatch, line):
    silent = re.compile(r"(--\S.*? {2,})?\((default|required)")
    assert not [text for text in explained(capsys, monkeypatch, line) if silent.match(text)]


@pytest.mark.parametrize("command", ["teach", "fit", "sample", "evaluate"])
def test_the_help_names_every_solver_grid_and_kind_of_artifact(capsys, monkeypatch, command):
    words = set(re.findall(r"[-\w]+", " ".join(explained(capsys, monkeypatch, command))))
    assert set(SOLVERS) | set(NAMES) <= words
    assert command in ("teach", "fit") or {*artifact.shipped_names(), "-god", "-local"} <= words


def test_the_version_is_the_package_s(capsys):
    assert entry.run(["--version"]) == 0
    assert capsys.readouterr().out.strip() == __version__


def test_in_a_log_file_long_work_says_where_it_is(indis, work, monkeypatch):
    monkeypatch.setattr(Reporting, "INTERVAL", 0.0)
    code, said = indis(f"fit --data data --out slow {FIT}")
    assert code == 0
    assert [line.rsplit(": ")[-1] for line in said.splitlines()[:-2]] == [
        f"{n} of 8" for n in range(1, 9)
    ]

"""What a person reads who asks for something impossible: one sentence, exit code 2, and no file."""

from pathlib import Path

import pytest
import torch

from cli.lines import FIT, TEACH, refused
from indis import Fixed, Sampler, artifact, models
from indis.cli.sampler import SamplerChoice
from indis.solvers import Euler
from indis.storage import load_json
from small_cases import contents, flip_last_byte, reseal

GOD = FIT.replace("--width 8 --depth 1", "")
KNOWN_SOLVERS = ["euler", "heun", "ipndm", "adams_bashforth", "deis", "dpmpp", "unipc"]
BAD = {
    "teach: unknown solver": ("teach --model toy --solver rk --out x", ["'rk'", *KNOWN_SOLVERS]),
    "teach: unknown grid": (
        "teach --model toy --grid even --out x",
        ["'even'", "uniform", "polynomial", "vp_time"],
    ),
    "teach: unknown model": ("teach --model flux --out x", ["'flux'", "toy", "fashion"]),
    "teach: unknown class": ("teach --model toy:C --out x", ["'C'", "AB"]),
    "teach: no steps": (
        "teach --model toy --steps 0 --out x",
        ["steps must be in 1 ... 10000, got 0"],
    ),
    "teach: no seeds": ("teach --model toy --count 0 --out x", ["count must be at least 1, got 0"]),
    "teach: other config": (
        f"{TEACH} --count 47 --out data",
        ["data holds endpoints with another config"],
    ),
    "teach: other teacher": (
        f"{TEACH.replace('12', '13')} --count 48 --out data",
        ["data holds endpoints with another provenance"],
    ),
    "teach: below a file": (f"{TEACH} --count 4 --out fit.json/x", ["fit.json/x"]),
    "teach: onto a file": (f"{TEACH} --count 4 --out fit.json", ["fit.json is a file"]),
    "fit: no endpoints": (
        f"fit --data nowhere --out x {FIT}",
        ["nowhere", "run `indis teach` first"],
    ),
    "fit: no steps": ("fit --data data --out x --steps 0", ["steps must be at least 1, got 0"]),
    "fit: half a range": (
        f"fit --data data --out x {FIT.replace('--steps 3', '--steps 3-')}",
        ["'3-'", "such as 3-10"],
    ),
    "fit: a falling range": (
        f"fit --data data --out x {FIT.replace('--steps 3', '--steps 10-3')}",
        ["'10-3'"],
    ),
    "fit: a range for another method": (
        f"fit --data data --out x --method god {FIT.replace('--steps 3', '--steps 3-5')}",
        ["steps must be one number for method god, got '3-5'"],
    ),
    "fit: no rate": (
        f"fit --data data --out x {FIT} --lr 0",
        ["error: lr must be positive and finite, got 0"],
    ),
    "fit: no batch, of another method": (
        "fit --method ld3 --data data --out x --batch 0",
        ["error: batch must be at least 1, got 0"],
    ),
    "budget: no rate": (
        "bench budget --artifact fitted --data data --heldout test --out x --lr -1",
        ["error: lr must be positive, got -1"],
    ),
    "sight: no width": (
        "bench foresight --artifact fitted --data data --width 0",
        ["error: width must be at least 1"],
    ),
    "fit: no width": (
        f"fit --data data --out x {FIT.replace('--width 8', '--width 0')}",
        ["width must be at least 1"],
    ),
    "fit: no depth": (
        f"fit --data data --out x {FIT.replace('--depth 1', '--depth -1')}",
        ["depth must be at least 1"],
    ),
    "fit: no width of AMED": (
        "fit --method amed --data data --out x --width -1",
        ["width must be at least 1, got -1"],
    ),
    "fit: a negative bound": (
        f"fit --data data --out x/y {FIT} --json z/fit.json --dtau -1",
        ["dtau must be in [0, inf)"],
    ),
    "fit: AYS without a table": (
        "fit --method ays --table svd --data data --out x --loss mse --holdout 8",
        ["table 'svd' is made for noise levels from 700"],
    ),
    "fit: negative probes": (
        f"fit --data data --out x {FIT} --probes -5",
        ["probes must be at least 0, got -5"],
    ),
    "fit: unknown solver": ("fit --data data --out x --solver rk", ["'rk'", *KNOWN_SOLVERS]),
    "fit: bad order": (
        "fit --data data --out x --solver ipndm:7",
        ["order must be 1, 2, 3 or 4, got 7"],
    ),
    "fit: unknown grid": ("fit --data data --out x --grid even", ["'even'", "uniform"]),
    "fit: unknown loss": (
        "fit --data data --out x --loss l1",
        ["'l1'", "mse", "squared", "fashion", "lpips"],
    ),
    "fit: loss of images": (
        f"fit --data data --out x {FIT.replace('squared', 'fashion')}",
        ["loss must suit model toy, got fashion", "grey images"],
    ),
    "fit: all held out": (
        "fit --data data --out x --loss mse --holdout 48",
        ["holdout", "48 of 48"],
    ),
    "fit: bad bound": (
        "fit --data data --out x --loss mse --holdout 8 --gamma 1",
        ["gamma must be in [0, 1)"],
    ),
    "fit: never saved": (
        f"fit --data data --out x {FIT} --save-every 0",
        ["save-every must be at least 1, got 0"],
    ),
    "fit: resume another": (
        f"fit --data data --out fitted {FIT} --seed 1",
        ["written with another configuration"],
    ),
    "fit: over another method's": (
        "fit --data data --out fitted --method gits --steps 3 --holdout 4",
        ["out must be a new folder or that of the same fit", "fitted"],
    ),
    "fit: resume other data": (
        f"fit --data test --out fitted {FIT}",
        ["written with another configuration"],
    ),
    "fit: start is no artifact": (
        f"fit --data data --out x {FIT} --start data",
        ["data is not an artifact"],
    ),
    "fit: start is no global plan": (
        f"fit --data data --out x {FIT} --start fitted",
        ["start must be a fitted shared plan"],
    ),
    "fit: below a file": (f"fit --data data --out fit.json/x {FIT}", ["fit.json/x"]),
    "fit: json below a file": (
        f"fit --data data --out x {FIT} --json fit.json/x",
        ["fit.json is a file"],
    ),
    "teach: json onto a folder": (f"{TEACH} --count 4 --out x --json data", ["data is a folder"]),
    "sample: json onto a folder": (
        "sample --model toy --out s.safetensors --json data",
        ["data is a folder"],
    ),
    "report: json onto a folder": ("bench report --run fitted --json data", ["data is a folder"]),
    "demo: json onto a folder": ("demo --out x --json data", ["data is a folder"]),
    "train-model: json onto a folder": ("bench train --out x --json data", ["data is a folder"]),
    "fit: json onto a folder": (f"fit --data data --out x {FIT} --json data", ["data is a folder"]),
    "teach: no such device": (
        "teach --model toy --out x --device gpu",
        ["device must be cpu, cuda or cuda:N, got 'gpu'"],
    ),
    "fit: absent device": (
        "fit --data data --out x --device cuda:99",
        ["device cuda:99 is absent"],
    ),
    "compare: absent device": (
        "bench compare --model toy --out x --device cuda:99",
        ["device cuda:99 is absent"],
    ),
    "sample: no artifact": (
        "sample --model toy --artifact x --out s.safetensors",
        ["artifact", "x"],
    ),
    "sample: another model": (
        "sample --model fashion --artifact fitted --out s.safetensors",
        ["fitted was fitted to model toy, got fashion"],
    ),
    "sample: no steps": (
        "sample --model toy --steps 0 --out s.safetensors",
        ["steps must be in 1 ... 10000, got 0"],
    ),
    "sample: a list of other length": (
        "sample --model toy --grid list:0.987654,0.5,0.002 --steps 3 --out s.safetensors",
        ["steps must be 2 for a grid of 3 listed times, got 3"],
    ),
    "fit: a list of other length": (
        f"fit --data data --out x {FIT} --grid list:0.987654,0.5,0.002",
        ["steps must be 2 for a grid of 3 listed times, got 3"],
    ),
    "fit: a list of words": (
        "fit --data data --out x --grid list:a,b",
        ["grid list needs at least two numbers with commas between, got 'list:a,b'"],
    ),
    "sample: no seeds": (
        "sample --model toy --count 0 --out s.safetensors",
        ["count must be in 1 ... 1000000 for .safetensors, got 0"],
    ),
    "sample: to .jpg": ("sample --model toy --out s.jpg", [".png or .safetensors", "s.jpg"]),
    "sample: points as picture": (
        "sample --model toy --out s.png",
        ["only images can be drawn", "use .safetensors"],
    ),
    "sample: below a file": (
        "sample --model toy --out fit.json/s.safetensors",
        ["fit.json is a file"],
    ),
    "sample: no call at all": (
        "sample --model toy --steps 1 --afs --out s.safetensors",
        ["steps must be above 1 with an analytic first step"],
    ),
    "fit: no call at all": (
        f"fit --data data --out x {FIT} --steps 1 --analytic-first",
        ["steps must be above 1 with an analytic first step"],
    ),
    "fit: no call at the fewest steps": (
        f"fit --data data --out x {FIT.replace('--steps 3', '--steps 1-3')} --analytic-first",
        ["fewest must be above 1 with an analytic first step"],
    ),
    "sample: a label of points": (
        "sample --model toy --label 3 --out s.safetensors",
        ["label must be left out for toy, which has no classes, got [3]"],
    ),
    "sample: no such label": (
        "sample --label 3 11",
        ["label must be 0 ... 9 or 10 for no label, got [3, 11]"],
    ),
    "sample: a solver beside an artifact": (
        "sample --model toy --artifact fitted --solver ipndm:3 --out s.safetensors",
        ["solver must be left out beside artifact, which has its own, got ipndm:3"],
    ),
    "evaluate: a grid beside an artifact": (
        "evaluate --heldout test --loss mse --artifact fitted --grid uniform",
        ["grid must be left out beside artifact"],
    ),
    "evaluate: afs beside an artifact": (
        "evaluate --heldout test --loss mse --artifact fitted --afs",
        ["afs must be left out beside artifact"],
    ),
    "evaluate: features of another loss": (
        "evaluate --heldout test --loss mse --features fitted",
        ["loss must have a feature network, as fashion has, to choose one, got 'mse'"],
    ),
    "evaluate: features that are none": (
        "evaluate --heldout test --loss fashion --features fitted",
        ["fitted", "fashion_features.safetensors"],
    ),
    "evaluate: nothing": ("evaluate", ["nothing to do", "--heldout", "--samples"]),
    "evaluate: one sample": ("evaluate --samples 1", ["samples must be 0 or at least 2, got 1"]),
    "evaluate: fewer than no samples": (
        "evaluate --samples -4",
        ["samples must be 0 or at least 2, got -4"],
    ),
    "evaluate: no such seeds": (
        "evaluate --samples 4 --first-seed 99999999999999999999",
        ["first_seed must be in 0"],
    ),
    "sample: no such seeds": (
        "sample --first-seed 99999999999999999999",
        ["first_seed must be in 0 ... 4294967256"],
    ),
    "sample: a negative seed": (
        "sample --first-seed -1",
        ["first_seed must be in 0 ... 4294967256 for 40 seeds"],
    ),
    "teach: no such seeds": (
        "teach --model toy --count 4 --first-seed 99999999999999999999 --out x",
        ["first_seed must be in 0 ... 4294967292 for 4 seeds, got 99999999999999999999"],
    ),
    "evaluate: one sample besides": (
        "evaluate --heldout test --loss mse --samples 1",
        ["samples must be", "got 1"],
    ),
    "evaluate: no endpoints": ("evaluate --heldout x", ["x holds no endpoints"]),
    "evaluate: no artifact": ("evaluate --heldout test --artifact x", ["artifact", "x"]),
    "evaluate: unknown loss": ("evaluate --heldout test --loss l1", ["'l1'", "squared"]),
    "evaluate: loss of images": (
        "evaluate --heldout test",
        ["loss must suit model toy, got fashion", "grey images"],
    ),
    "evaluate: FD of points": ("evaluate --heldout test --loss mse --samples 4", ["grey images"]),
    "evaluate: negative": (
        "evaluate --heldout test --loss mse --samples -4",
        ["samples must be", "-4"],
    ),
    "evaluate: json below a file": (
        "evaluate --heldout test --loss mse --json fit.json/x",
        ["fit.json is a file"],
    ),
    "toy: unknown freedoms": ("bench toy --freedoms sigma", ["sigma", "tau+dtau+gamma"]),
    "toy: no steps": ("bench toy --steps 3 0", ["steps must be at least 1"]),
    "toy: no true samples": ("bench toy --reference 0", ["reference must be at least 1, got 0"]),
    "toy: no width": ("bench toy --width 0", ["width must be at least 1, got 0"]),
    "toy: unknown class": ("bench toy --classes C", ["'C'", "AB"]),
    "toy: below a file": ("bench toy --quick --out fit.json/x", ["fit.json/x"]),
    "toy: json below a file": ("bench toy --quick --json fit.json/x", ["fit.json is a file"]),
    "compare: unknown model": ("bench compare --out x --model flux", ["'flux'", "toy", "fashion"]),
    "compare: no model": (
        "bench compare --out x --model",
        ["model must be at least one of toy, fashion"],
    ),
    "compare: no seeds": ("bench compare --out x --seeds", ["seeds must be at least one value"]),
    "compare: no afs": ("bench compare --out x --afs", ["afs must be at least one value"]),
    "compare: negative samples": (
        "bench compare --out x --samples -1",
        ["samples must be 0 or at least 2, got -1"],
    ),
    "compare: all held out": (
        "bench compare --out x --endpoints 5 --holdout 8",
        ["endpoints must be above holdout = 8"],
    ),
    "compare: no held-out pairs": (
        "bench compare --out x --heldout 0",
        ["heldout must be at least 1, got 0"],
    ),
    "compare: unknown method": (
        "bench compare --out x --methods sigma",
        ["sigma", "god", "indis", "ablation"],
    ),
    "compare: unknown grid": ("bench compare --out x --grids even", ["'even'", "uniform"]),
    "compare: no calls": (
        "bench compare --out x --steps 0",
        ["steps must be at least one number, each at least 1, got 0"],
    ),
    "compare: no numbers of calls": (
        "bench compare --out x --steps",
        ["steps must be at least one number, each at least 1, got none"],
    ),
    "compare: no methods": (
        "bench compare --out x --methods",
        ["methods must be at least one value, got none"],
    ),
    "evaluate: unknown loss that nobody asks for": (
        "evaluate --samples 4 --loss lpip",
        ["loss must be one of", "'lpip'"],
    ),
    "compare: bf16 without network": (
        "bench compare --out x --model toy --bf16",
        ["bf16 must be left out for toy"],
    ),
    "fit: unknown method": (
        "fit --method sigma --data data --out x",
        ["'sigma'", "indis", "god", "look"],
    ),
    "report: onto a folder": (
        "bench report --run fitted --out test",
        ["test is a folder, a file is expected"],
    ),
    "report: figures onto a file": (
        "bench report --run fitted --figures fit.json",
        ["fit.json is a file"],
    ),
    "report: no folder": ("bench report --run nowhere", ["nowhere"]),
    "report: nothing in it": ("bench report --run data", ["data", "nothing|no results"]),
    "train-model: no data": (
        "bench train --out x --data test",
        ["train-images-idx3-ubyte.gz is missing"],
    ),
    "train-model: no weights": ("bench train --out x --init nowhere", ["nowhere does not exist"]),
    "train-model: images of features": (
        "bench train --what features --out x --images 5",
        ["images must be left out with --what features, got 5"],
    ),
    "train-model: a rate of features": (
        "bench train --what features --out x --lr 1",
        ["lr must be left out"],
    ),
    "train-model: a start of features": (
        "bench train --what features --out x --init y",
        ["init must be left out"],
    ),
    "train-model: checkpoints of features": (
        "bench train --what features --out x --save-every 5",
        ["save-every must be left out with --what features, got 5"],
    ),
    "train-model: no images": ("bench train --out x --images 0", ["images must be at least 1"]),
    "train-model: ema of 2": ("bench train --out x --ema 2", ["ema must be in [0, 1), got 2"]),
    "train-model: dropout of 3": (
        "bench train --out x --label-dropout 3",
        ["dropout must be in [0, 1], got 3"],
    ),
    "train-model: negative warm-up": (
        "bench train --out x --warmup -1",
        ["warmup must be at least 0, got -1"],
    ),
    "train-model: negative rate": ("bench train --out x --lr -1", ["lr must be positive, got -1"]),
    "train-model: never saved": (
        "bench train --out x --save-every 0",
        ["save-every must be at least 1"],
    ),
}


@pytest.mark.parametrize(("line", "parts"), BAD.values(), ids=BAD)
def test_bad_input_is_one_sentence_and_leaves_no_file(indis, work, line, parts):
    said = refused(indis, line)
    for part in parts:
        assert any(choice in said for choice in part.split("|")), said


@pytest.mark.parametrize(
    "command", [f"fit --data data --out x {FIT}", "evaluate --heldout data --loss mse"]
)
def test_damaged_endpoints_are_named(indis, work, command):
    flip_last_byte(work / "data" / "endpoints-00001.safetensors")
    assert "data/endpoints-00001.safetensors is damaged" in refused(indis, command)
    (work / "data" / "endpoints-00001.safetensors").unlink()
    assert "data/endpoints-00001.safetensors is missing" in refused(indis, command)


def test_a_damaged_shard_is_made_again_by_teaching(indis, work):
    before = contents(work)
    flip_last_byte(work / "data" / "endpoints-00001.safetensors")
    assert "run `indis teach` again to mend it" in refused(
        indis, "evaluate --heldout data --loss mse"
    )
    code, said = indis(f"{TEACH} --count 48 --out data")
    assert (code, contents(work)) == (0, before)
    assert "made again what was missing or damaged in data: endpoints-00001.safetensors\n" in said


@pytest.mark.parametrize(
    ("method", "command"),
    [
        (FIT, "bench overhead --model fashion --artifact"),
        (GOD, "bench foresight --loss squared --data other --artifact"),
    ],
)
def test_studies_refuse_an_artifact_of_another_model(indis, work, method, command):
    kind = "--method god" if method is GOD else ""
    assert indis(f"fit {kind} --data data --out own {method}")[0] == 0
    assert (
        indis(
            "teach --model toy:AB --solver euler --grid uniform --steps 4 --count 20 --out other"
        )[0]
        == 0
    )
    said = refused(indis, f"{command} own")
    assert said.startswith("indis: error: own was fitted to model toy, got ")


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
    reseal(work / "data" / "meta.json", meta | {"provenance": {}})
    for command in (f"fit --data data --out x {FIT}", "evaluate --heldout data --loss mse"):
        assert "name no model" in refused(indis, command)


def test_endpoints_of_other_weights_are_refused(indis, work):
    meta = load_json(work / "data" / "meta.json")
    reseal(
        work / "data" / "meta.json",
        meta | {"provenance": meta["provenance"] | {"weights": "others"}},
    )
    for command in (f"fit --data data --out x {FIT}", "evaluate --heldout data --loss mse"):
        assert "data were made with weights others, toy has toy" in refused(indis, command)


def test_heldout_endpoints_that_the_fit_has_seen_are_refused(indis, work):
    assert indis(f"{TEACH} --count 20 --first-seed 40 --out partly")[0] == 0
    said = refused(indis, "evaluate --artifact fitted --heldout partly --loss mse")
    assert "no fit has seen, but fitted was fitted on 0 ... 47: 8 of 20" in said


def test_seeds_of_the_artifact_that_a_fit_began_at_count_as_seen(indis, work):
    assert indis(f"fit --method god --data data --out god {GOD}")[0] == 0
    assert indis(f"fit --data test --out phi {FIT} --holdout 4 --start god")[0] == 0
    assert "phi was fitted on 0 ... 47" in refused(
        indis, "evaluate --artifact phi --heldout data --loss mse"
    )
    assert "phi was fitted on 100 ... 119" in refused(
        indis, "evaluate --artifact phi --heldout test --loss mse"
    )


@pytest.mark.parametrize(
    "command", ["sample --out s.safetensors", "evaluate --heldout test --loss mse"]
)
@pytest.mark.parametrize(
    ("times", "part"),
    [
        ((80, 10, 1, 0.002), "tau must lie in [0.001996007984, 0.987654321], got [0.002, 80]"),
        ((0.9, 0.5, 0.002), "tau must begin at t_max = 0.987654321, got 0.9"),
    ],
)
def test_a_stored_plan_of_other_times_than_the_model_s_is_refused(
    indis, work, command, times, part
):
    plan = Fixed(torch.tensor([times], dtype=torch.float64))
    artifact.save(Sampler(plan, Euler()), work / "plan")
    said = refused(indis, f"{command} --model toy --artifact plan")
    assert said == f"indis: error: plan does not suit model toy: {part}\n"


def test_a_stored_plan_of_the_model_s_own_times_serves_whatever_the_rounding(indis, work):
    schedule = models.load("toy").schedule
    plan = Fixed(
        torch.tensor([[schedule.t_max * (1 - 1e-9), 0.5, schedule.t_min]], dtype=torch.float64)
    )
    artifact.save(Sampler(plan, Euler()), work / "plan")
    assert indis("sample --model toy --artifact plan --out s.safetensors")[0] == 0


def test_an_artifact_of_another_model_is_refused_even_if_its_schedule_is_the_same(indis, work):
    assert indis("sample --model toy:A --artifact fitted --out s.safetensors")[0] == 0
    (work / "s.safetensors").unlink()
    said = refused(indis, "sample --model toy:AB --artifact fitted --out s.safetensors")
    assert "fitted was fitted to model toy, got toy-AB" in said


@pytest.mark.parametrize("spec", ["toy", "toy:A", "toy:B", "toy:AB", "fashion"])
def test_a_model_s_name_is_known_before_it_is_loaded(spec):
    assert models.name_of(spec) == models.load(spec).name
    assert (
        models.name_of(models.load(spec).name) == models.load(spec).name
    )  # what comparisons record


@pytest.mark.parametrize("name", artifact.shipped_names())
def test_what_ships_is_not_refused(name):
    fashion = models.load("fashion")
    assert SamplerChoice(artifact=Path(name)).build(fashion).policy.steps >= 3


@pytest.mark.parametrize("record", [{}, {"fitted_on": None}, {"fitted_on": ["0 ... 47"]}])
def test_an_artifact_that_does_not_say_what_it_was_fitted_on_still_serves(indis, work, record):
    config = load_json(work / "fitted" / "config.json")
    reseal(work / "fitted" / "config.json", config | {"provenance": record})
    assert indis("evaluate --artifact fitted --heldout data --loss mse")[0] == 0


def test_endpoints_that_do_not_say_which_weights_they_are_of_still_serve(indis, work):
    meta = load_json(work / "test" / "meta.json")
    del meta["provenance"]["weights"]
    reseal(work / "test" / "meta.json", meta)
    assert indis("evaluate --heldout test --loss mse")[0] == 0


@pytest.mark.parametrize("part", ["config", "provenance", "noise", "shards"])
@pytest.mark.parametrize("value", [None, [], {"count": "many"}, 0])
def test_endpoint_metadata_of_another_kind_is_refused(indis, work, part, value):
    meta = load_json(work / "data" / "meta.json")
    reseal(work / "data" / "meta.json", meta | {part: value})
    assert "data" in refused(indis, f"fit --data data --out x {FIT}")
    assert "data" in refused(indis, f"{TEACH} --count 48 --out data")


def test_a_range_of_steps_may_follow_an_equals_sign(indis, work):
    assert indis(f"fit --data data --out every {FIT.replace('--steps 3', '--steps=2-3')}")[0] == 0
    assert artifact.load(work / "every").policy.counts == (2, 3)


def test_a_damaged_checkpoint_is_named(indis, work):
    (work / "fitted" / "checkpoint.safetensors").write_bytes(b"no")
    assert "fitted/checkpoint.safetensors is damaged" in refused(
        indis, f"fit --data data --out fitted {FIT}"
    )

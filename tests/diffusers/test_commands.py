"""teach, fit, sample and evaluate on a pipeline, and its sampler inside the pipeline."""

import json

import pytest
import torch
from diffusers import FluxPipeline

import tiny_pipelines as tiny
from indis import losses, models
from indis.cli.main import run as command
from indis.diffusers import enable
from indis.endpoints import load_endpoints
from indis.methods import named
from indis.recipe import Recipe


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a pipeline, prompts and end points."""
    folder = tmp_path_factory.mktemp("pipeline")
    tiny.flux().save_pretrained(folder / "flux")
    (folder / "prompts.txt").write_text("a cat\ntwo dogs\n\na red car\nsky\na house\n")
    for out, more in (("ep", ["--count", "14"]), ("judge", ["--judge", "--count", "4"])):
        first = ["--first-seed", "100"] if out == "judge" else []
        assert run(
            *["teach", "--model", f"diffusers:{folder / 'flux'}", "--guidance", "3.5"],
            *["--prompts", str(folder / "prompts.txt"), "--heldout-prompts", "2", *more, *first],
            *["--size", "16x16", "--steps", "6", "--shard", "5", "--out", str(folder / out)],
        ) == 0  # fmt: skip
    return folder


def run(*words):
    return command(list(words))


def test_a_fit_on_a_pipeline_samples_inside_it(place):
    fit = ["fit", "--data", str(place / "ep"), "--out", str(place / "art"), "--steps", "3"]
    small = ["--width", "8", "--iterations", "4", "--batch", "4", "--holdout", "4"]
    assert run(*fit, "--loss", "mse", "--stream", *small) == 0
    made = json.loads((place / "art" / "config.json").read_text())["provenance"]
    assert made["pipeline"]["dtype"] == "float32"
    assert made["pipeline"]["call"] == {"guidance_scale": 3.5, "width": 16, "height": 16}
    assert made["pipeline"]["prompts"]["count"] == 3
    out = place / "two.safetensors"
    words = ["--prompt", "a bird", "a fish", "--count", "2", "--out", str(out)]
    assert run("sample", "--artifact", str(place / "art"), *words) == 0
    drawn = losses_of(out)
    pipe = FluxPipeline.from_pretrained(place / "flux")
    pipe.set_progress_bar_config(disable=True)
    denoiser = models.load(made["model"]).prompted(["a bird", "a fish"])
    noise = noise_of(denoiser, [0, 1])
    call = {"height": 16, "width": 16, "guidance_scale": 3.5, "output_type": "pt"}
    with enable(pipe, place / "art"):
        pictures = pipe(["a bird", "a fish"], num_inference_steps=3, latents=noise, **call).images
    assert (pictures - (drawn / 2 + 0.5).clamp(0, 1)).abs().max() <= 1e-5


def losses_of(path):
    from safetensors.torch import load_file

    return load_file(path)["samples"]


def noise_of(denoiser, seeds):
    from indis.endpoints import noise_from_seeds

    return denoiser.family.pack(denoiser.pipe, noise_from_seeds(seeds, denoiser.shape), {})


def test_end_points_store_numbers_of_prompts_and_prompts_are_stored_once(place):
    data, meta = load_endpoints(place / "ep")
    assert data.condition.inputs.keys() == {"prompt"}
    assert data.condition.inputs["prompt"].tolist() == [seed % 3 for seed in range(14)]
    assert len(list((place / "ep" / "conditions").iterdir())) == 3
    judged = load_endpoints(place / "judge")[1]["provenance"]["pipeline"]["prompts"]
    assert judged["count"] == 2
    assert judged["digest"] != meta["provenance"]["pipeline"]["prompts"]["digest"]


def test_streamed_end_points_are_the_loaded_ones_and_fits_on_them_the_same(place):
    whole, meta = load_endpoints(place / "ep")
    streamed, _ = load_endpoints(place / "ep", stream=True)
    rows = torch.tensor([13, 0, 5, 4, 0])
    for one, two in ((whole, streamed), (whole[rows], streamed[rows]), (whole[3:8], streamed[3:8])):
        assert torch.equal(one.seeds, two.seeds)
        assert torch.equal(one.noise, two.noise)
        assert torch.equal(one.target, two.target)
        assert torch.equal(one.condition.inputs["prompt"], two.condition.inputs["prompt"])
        assert torch.equal(one.condition.features, two.condition.features)
    denoiser, ends = models.load(meta["provenance"]["model"]), []
    for data in (whole, streamed):
        recipe = Recipe(iterations=3, batch=4, holdout=4)
        config = named("indis")(steps=2, width=8, recipe=recipe)
        process = config.tuning(denoiser, data, losses.named("mse"))
        list(process.run())
        ends.append(process.best)
    assert ends[0] == ends[1]


def test_evaluation_with_held_out_prompts(place, tmp_path):
    words = ["--heldout", str(place / "judge"), "--loss", "mse", "--json", str(tmp_path / "r.json")]
    assert run("evaluate", "--solver", "euler", "--steps", "2", *words) == 0
    row = json.loads((tmp_path / "r.json").read_text())["rows"][0]
    assert row["pairs"] == 4 and row["nfe"] == 2 and row["heldout_loss"] > 0


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--guidance", "2"], "guidance must be left out for model fashion"),
        (["--model", "diffusers:"], "must name a folder or a repository"),
        (["--model", "diffusers:x,blue"], "got 'blue'"),
        (["--model", "diffusers:x", "--size", "16"], "size must be WIDTHxHEIGHT"),
        (["--model", "diffusers:x,bf16,fp16"], "one of bf16 and fp16"),
        (["--model", "diffusers:not-there"], "must name a pipeline of diffusers"),
    ],
)
def test_wrong_options_are_refused_by_a_sentence(words, says, tmp_path, capsys):
    assert run("teach", *words, "--count", "1", "--out", str(tmp_path / "x")) == 2
    assert says in " ".join(capsys.readouterr().err.split())

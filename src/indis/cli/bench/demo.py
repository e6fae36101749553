"""``indis bench demo``: the main job in minutes, with what ships and without a network."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch

from indis import artifact
from indis.bench.compare import Comparison
from indis.bench.lineup import CompareConfig
from indis.bench.pictures import seconds_a_sample
from indis.bench.suite import Bench, FashionBench, Sizes
from indis.bench.toy_study import ToyConfig, ToyStudy
from indis.cli.bench import compare, toy
from indis.cli.console import JsonFile, command_line, emit, say
from indis.cli.model import WithModel
from indis.cli.paths import writable, writable_file
from indis.cli.pictures import Strip, save_sheet
from indis.cli.sample import captions
from indis.evaluate import sample_batches
from indis.recipe import Recipe
from indis.storage import load_json, save_json

# One fit beside three plain grids and what ships, all with three evaluations a sample.
BRIEF = CompareConfig(
    methods=("indis",),
    grids=("polynomial:7", "log_snr", "uniform"),
    nfe=(3,),
    shipped=True,
)
# A comparison small enough for two cores and a quarter of an hour.
FULL = CompareConfig(
    methods=("god", "indis"),
    grids=("polynomial:7", "log_snr", "vp_time", "vp_time:2", "uniform"),
    nfe=(3, 5),
    shipped=True,
)
RECIPE = Recipe(iterations=40, batch=32, holdout=96, validate_every=4, probes=32)
ENDPOINTS = 256  # for the short fit, its holdout included
FIRST, SIZE = "first.png", "pairs.json"
SHOWN = {
    "fitted, one plan for all seeds": "fashion-nfe3-god",
    "fitted, a plan for each seed": "fashion-nfe3",
    "fitted, and corrects each picture on the way": "fashion-nfe3-local",
}
SEEDS = range(20_000, 20_016)  # which no sampler was fitted on
# The held-out pairs are as many as the teacher and seven samplers with three evaluations each
# get through in this time, within these limits.
PAIR_SECONDS, FEWEST, MOST = 60.0, 100, 300


@dataclass(frozen=True)
class Demo(WithModel):
    """Draw with the samplers that ship, judge them, fit one more, and write a report.

    On two cores the first picture takes under a minute, and all of it under four.

    Run it again to go on where it stopped.

    Example: indis demo --out runs/demo

    Example: indis bench demo --full --out runs/demo-full
    """

    keeps: ClassVar[str] = FIRST

    out: Path = Path("runs/demo")
    """Folder for the picture, the report and everything they are made from."""
    full: bool = False
    """Take a quarter of an hour: also the toy study, more endpoints, more fits."""
    json: JsonFile = None
    """Write the comparison's rows, where the report is, and the seconds it took."""

    def run(self) -> None:
        """Draw, teach, fit, judge, report."""
        from indis.bench.report.page import write_report

        started = time.perf_counter()
        writable(self.out)
        own = ("report.html", FIRST, SIZE, *toy.OWN, *compare.OWN)
        writable_file(self.json, {self.out: own})
        bench = FashionBench(device=self.place)
        self._picture(bench)
        drawn = time.perf_counter() - started
        say(f"first picture: {self.out / FIRST} ({drawn:.0f} s)")
        if self.full:
            say("toy study: an exact 2-D denoiser, Euler with 3 and 5 steps")
            self._toy()
        config, sizes = self._plan(bench)
        say(f"{len(config.methods) * len(config.nfe)} fits on {sizes.endpoints} teacher endpoints,")
        say(f"then all samplers on {sizes.heldout} held-out ones")
        comparison = Comparison(config, bench, sizes, self.out)
        compare.run_comparison(comparison)
        table, report = comparison.collect(), self.out / "report.html"
        seconds = time.perf_counter() - started
        run = {
            "command": command_line(),
            "config": asdict(config),
            "seconds": seconds,
            "versions": _versions(),
            "text": _lead(sizes),
        }
        save_json(self.out / "run.json", run)
        write_report(self.out, report)
        for line in compare.lines(table):
            say(line)
        seconds = time.perf_counter() - started
        say(f"first picture: {self.out / FIRST}")
        say(f"report: {report} ({seconds:.0f} s)")
        told = {"picture": str(self.out / FIRST), "picture_seconds": drawn}
        told |= {"report": str(report), "seconds": seconds}
        emit({"rows": table["rows"], **told}, self.json)

    def _picture(self, bench: Bench) -> None:
        """Write the same seeds as the teacher and samplers of three evaluations draw them."""
        samplers = {
            f"teacher, {bench.teacher_steps} evaluations a picture": bench.teacher,
            "not fitted, 3 evaluations": bench.grid_sampler(
                "polynomial:7", 3, analytic_first=False
            ),
        }
        for title, name in SHOWN.items():
            samplers[f"{title}, 3 evaluations ({name})"] = artifact.load(name)
        strips = [
            Strip(torch.cat(list(sample_batches(bench.denoiser, sampler, SEEDS))).cpu(), title)
            for title, sampler in samplers.items()
        ]
        save_sheet(strips, captions(bench.denoiser, SEEDS), self.out / FIRST)

    def _plan(self, bench: Bench) -> tuple[CompareConfig, Sizes]:
        """Return what is compared, and on how many pairs.

        How many pairs is written down, so that a run that goes on has as many.
        """
        if self.full:
            return FULL, bench.brief
        path = self.out / SIZE
        if not path.exists():
            calls = bench.teacher_steps + 7 * BRIEF.nfe[0]
            count = PAIR_SECONDS / (calls * seconds_a_sample(bench.denoiser))
            save_json(path, {"heldout": int(min(max(count, FEWEST), MOST)) // 50 * 50})
        return BRIEF, Sizes(ENDPOINTS, load_json(path)["heldout"], 0, RECIPE)

    def _toy(self) -> None:
        if not (self.out / "toy.json").exists():
            study = ToyStudy(ToyConfig().quick())
            toy.run_study(study)
            toy.write(study, self.out)


def _lead(sizes: Sizes) -> list[str]:
    """What the report says first."""
    return [
        "A diffusion model draws a picture from noise by asking a network again and again. The "
        "teacher asks 30 times. The samplers below ask far fewer times, and are fitted to end "
        "where the teacher ends from the same noise.",
        f"Held-out loss is the mean distance to the teacher's picture over {sizes.heldout} noises "
        "that no fit has seen: smaller is better. An evaluation (NFE) is one call of the network. "
        "“god” is one plan for all noises, “indis” a plan for each noise, and “local” also "
        "corrects the picture on the way. “Shipped” samplers come with the package. The others "
        f"were fitted just now, in {sizes.recipe.iterations} iterations on "
        f"{sizes.endpoints - sizes.recipe.holdout} pairs: a demonstration, not the best they can "
        "do.",
    ]


def _versions() -> dict[str, Any]:
    from importlib.metadata import version

    return {name: version(name) for name in ("indis-diffusion", "torch", "diffusers")}

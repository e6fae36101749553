"""``indis bench demo``: the main job in minutes, with what ships and without a network."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import ClassVar

from indis.bench.compare import CompareConfig, Comparison
from indis.bench.suite import FashionBench
from indis.bench.toy_study import ToyConfig, ToyStudy
from indis.cli.bench import compare, toy
from indis.cli.console import JsonFile, command_line, emit, say
from indis.cli.model import WithModel
from indis.cli.paths import writable, writable_file
from indis.storage import save_json

# A comparison small enough for two cores and a coffee.
DEMO = CompareConfig(
    methods=("god", "indis"),
    grids=("polynomial:7", "log_snr", "vp_time", "vp_time:2", "uniform"),
    nfe=(3, 5),
    shipped=True,
)


@dataclass(frozen=True)
class Demo(WithModel):
    """Fit a sampler to Fashion-MNIST, run the quick toy study, and write a report.

    Example: indis demo --out runs/demo
    """

    keeps: ClassVar[str] = "toy.json"

    out: Path = Path("runs/demo")
    """Folder for the report and everything it is made from."""
    json: JsonFile = None
    """Write the comparison's rows, where the report is, and the seconds it took."""

    def run(self) -> None:
        """Teach, fit, evaluate, report."""
        from indis.bench.report.page import write_report

        started = time.perf_counter()
        writable(self.out)
        writable_file(self.json, {self.out: ("report.html", *toy.OWN, *compare.OWN)})
        say("1/3 toy study: an exact 2-D denoiser, Euler with 3 and 5 steps")
        self._toy()
        say(
            "2/3 Fashion-MNIST: teacher endpoints, then short fits of phi and of one global plan, "
            "3 and 5 evaluations"
        )
        comparison = Comparison(DEMO, FashionBench(device=self.place), FashionBench.brief, self.out)
        compare.run_comparison(comparison)
        say("3/3 report")
        seconds = time.perf_counter() - started
        run = {
            "command": command_line(),
            "config": asdict(DEMO),
            "seconds": seconds,
            "versions": _versions(),
        }
        save_json(self.out / "run.json", run)
        write_report(self.out, self.out / "report.html")
        table, report = comparison.collect(), self.out / "report.html"
        for line in compare.lines(table):
            say(line)
        say(f"report: {report} ({seconds:.0f} s)")
        emit({"rows": table["rows"], "report": str(report), "seconds": seconds}, self.json)

    def _toy(self) -> None:
        if not (self.out / "toy.json").exists():
            study = ToyStudy(ToyConfig().quick())
            toy.run_study(study)
            toy.write(study, self.out)


def _versions() -> dict[str, str]:
    from importlib.metadata import version

    return {name: version(name) for name in ("indis-diffusion", "torch", "diffusers")}

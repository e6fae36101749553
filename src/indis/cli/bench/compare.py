"""``indis bench compare``: every method on one solver loop under one protocol."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar

import tyro

from indis.bench import suite as bench
from indis.bench.compare import Comparison
from indis.bench.lineup import CompareConfig
from indis.bench.pictures import Picture, write_plans, write_samples
from indis.bench.report.results_table import write_markdown
from indis.cli.console import JsonFile, bar, command_line, emit, say
from indis.cli.model import WithModel
from indis.cli.paths import writable, writable_file
from indis.storage import save_json, write_aside
from indis.writer import one_writer

# What a comparison writes into the folder of a model.
OWN = (
    *(
        "results.json",
        "results.md",
        "curves.json",
        "run.json",
        "samples.safetensors",
        "plans.safetensors",
    ),
    *("cells/*", "artifacts/*", "endpoints/*", "heldout/*"),
)


@dataclass(frozen=True)
class Compare(WithModel):
    """Compare methods at equal numbers of evaluations. Run it again to go on.

    Example: indis bench compare --model toy --steps 3 5 --quick --json out.json

    Example: indis bench compare --model fashion --methods god indis --seeds 0 1 2
    """

    keeps: ClassVar[str] = "*/endpoints/meta.json"

    model: tuple[str, ...] = ("toy",)
    """Models to compare on: toy, fashion, galaxies."""
    methods: tuple[str, ...] = ("all",)
    """Methods to compare: names, or the groups all, published, ours and ablation."""
    steps: tuple[int, ...] = (3, 5, 7)
    """Numbers of network evaluations one after another."""
    seeds: tuple[int, ...] = (0,)
    """Seeds of the fits. Each is a row of its own."""
    afs: tuple[bool, ...] = (False,)
    """Whether the first step is analytic: False, True, or both."""
    grids: tuple[str, ...] = ("all",)
    """Grids without a fit to compare with, or all."""
    out: Path = Path("runs/compare")
    """Folder for the results, one below it for each model."""
    resume: bool = True
    """Keep finished cells. --no-resume computes the chosen ones again, but no endpoints."""
    quick: bool = False
    """Use small sizes, for minutes instead of hours."""
    bf16: bool = False
    """Run teacher and samples under bfloat16 autocast. Fits and pairs stay float32."""
    shipped: bool = False
    """Also judge the fitted samplers that come with the package."""
    sizes: Annotated[SizeOptions, tyro.conf.arg(name="")] = field(
        default_factory=lambda: SizeOptions()
    )
    """Sizes in place of the model's own."""
    json: JsonFile = None
    """Write all rows."""

    def run(self) -> None:
        """Run the missing cells, then print the tables."""
        if not self.model:
            raise ValueError("model must be at least one of toy, fashion, galaxies, got none")
        writable_file(self.json, {self.out / name: OWN for name in self.model})
        rows: list[dict[str, Any]] = []
        for comparison in [
            self._comparison(name) for name in self.model
        ]:  # all at once, as each may refuse
            rows += self._run(comparison)["rows"]
        emit({"rows": rows}, self.json)

    def _comparison(self, name: str) -> Comparison:
        folder = self.out / name
        kind = bench.named(name)
        config = line_up(
            self.methods, self.grids, self.steps, self.afs, self.seeds, shipped=self.shipped
        )
        sizes = bench.resized(kind.brief if self.quick else kind.full, asdict(self.sizes))
        writable(folder)
        return Comparison(config, kind(bf16=self.bf16, device=self.place), sizes, folder)

    def _run(self, comparison: Comparison) -> dict[str, Any]:
        with one_writer(comparison.folder):
            return self._write(comparison)

    def _write(self, comparison: Comparison) -> dict[str, Any]:
        run_comparison(comparison, anew=not self.resume)
        settings = {"config": asdict(comparison.config), "sizes": asdict(comparison.sizes)}
        save_json(comparison.folder / "run.json", {"command": command_line(), "config": settings})
        table = comparison.collect()
        text = write_markdown(comparison.folder)
        write_aside(
            comparison.folder / "results.md", lambda aside: aside.write_text(text, encoding="utf-8")
        )
        for line in (*lines(table), *(note for note in table["notes"] if note.startswith("Not "))):
            say(line)
        return table


@dataclass(frozen=True)
class SizeOptions:
    """Sizes of a comparison; what is left out is the model's default."""

    endpoints: int | None = None
    """Number of teacher endpoints for tuning."""
    heldout: int | None = None
    """Number of other endpoints, for the reported distances."""
    samples: int | None = None
    """Number of samples for the distance to the data. 0 leaves it out."""
    iterations: int | None = None
    """Number of iterations of every learned method."""
    batch: int | None = None
    """Number of endpoints in an iteration of every learned method."""
    holdout: int | None = None
    """Number of the tuning endpoints that only choose the best iteration."""
    validate_every: int | None = None
    """Number of iterations between two looks at those."""


def line_up(
    methods: tuple[str, ...],
    grids: tuple[str, ...],
    steps: tuple[int, ...],
    afs: tuple[bool, ...],
    seeds: tuple[int, ...],
    *,
    shipped: bool = False,
) -> CompareConfig:
    """Return which cells a comparison has; its errors name the command line's options.

    Raises:
        ValueError: For a value that no comparison takes.
    """
    if not steps or min(steps) < 1:
        given = ", ".join(map(str, steps)) or "none"
        raise ValueError(f"steps must be at least one number, each at least 1, got {given}")
    if min(seeds, default=0) < 0:
        raise ValueError(f"seeds must be at least 0, got {min(seeds)}")
    return CompareConfig(methods, grids, steps, afs, seeds, shipped)


def run_comparison(comparison: Comparison, *, anew: bool = False) -> None:
    """Run under one progress bar, then draw what the report shows besides numbers; ``anew`` reuses
    no cell.
    """
    name = comparison.bench.name
    with bar() as progress:
        task = progress.add_task(name, total=1)
        for state in comparison.run(anew=anew):
            progress.update(
                task, completed=state.done, total=state.total, description=f"{name}: {state.doing}"
            )
    if len(comparison.denoiser.shape) == 3:
        draw(comparison)


def draw(comparison: Comparison) -> None:
    """Samples from the same noise, and plans of held-out instances."""
    pictures = [Picture("teacher", comparison.bench.teacher_steps, None)]
    for nfe in comparison.config.nfe:
        pictures += [Picture(label, nfe, sampler) for label, sampler in comparison.shown(nfe)]
    write_samples(comparison.denoiser, comparison.heldout, pictures, comparison.folder)
    write_plans(comparison.denoiser, comparison.heldout, pictures, comparison.folder)


COLUMNS = {
    "heldout_loss": ("held out", "10.5f"),
    "teacher_mse": ("MSE", "9.5f"),
    "fd": ("FD", "8.3f"),
    "kl": ("KL", "7.3f"),
    "w1": ("W1", "7.4f"),
    "fit_seconds": ("fit s", "7.0f"),
    "parameters": ("params", "7d"),
    "calls": ("calls", "5d"),
}


def lines(table: dict[str, Any]) -> list[str]:
    """The rows as aligned text, best first within each number of evaluations."""
    shown = {
        k: v for k, v in COLUMNS.items() if any(row.get(k) is not None for row in table["rows"])
    }
    head = f"{'method':22} {'nfe':>3} {'afs':>5} {'seed':>4} " + " ".join(
        _right(t, f) for t, f in shown.values()
    )
    ordered = sorted(table["rows"], key=lambda row: (row["nfe"], row["heldout_loss"]))
    return [head, *(_line(row, shown) for row in ordered)]


def _line(row: dict[str, Any], shown: dict[str, tuple[str, str]]) -> str:
    seed = "" if row["seed"] is None else row["seed"]
    values = [
        _right("" if row.get(k) is None else format(row[k], f), f) for k, (_, f) in shown.items()
    ]
    return f"{row['method']:22} {row['nfe']:3d} {row['afs']!s:>5} {seed!s:>4} " + " ".join(values)


def _right(text: str, form: str) -> str:
    return text.strip().rjust(int(form.split(".")[0].rstrip("d")))

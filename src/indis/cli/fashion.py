"""``indis fashion``: the image study."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from indis.cli.console import bar, command_line, emit, say, writable, writable_file
from indis.models.fashion import load
from indis.storage import load_json, save_json
from indis.studies.fashion import FashionConfig, FashionStudy
from indis.studies.pictures import Picture, write_plans, write_samples


@dataclass(frozen=True)
class FashionCommand:
    """INDIS and its baselines on the Fashion-MNIST model; finished cells are kept, run again to go on.

    Example: indis fashion --out runs/fashion

    Example: indis fashion --out runs/fashion --methods global indis --seeds 0 1 2 --afs False True
    """

    out: Path
    """Folder of the study."""
    config: Annotated[FashionConfig, tyro.conf.arg(name="")] = field(default_factory=FashionConfig)
    """Which cells."""
    json: Path | None = None
    """Write the rows to this file as well."""

    def run(self) -> None:
        """Run the missing cells, then print the table."""
        writable(self.out)
        writable_file(self.json)
        study = FashionStudy(self.config, load(), self.out)
        run_study(study)
        save_json(self.out / "run.json", {"command": command_line(), "config": asdict(self.config)})
        draw(study)
        table = load_json(self.out / "fashion.json")
        for line in lines(table):
            say(line)
        emit(table, self.json)


def run_study(study: FashionStudy) -> None:
    """Run under one progress bar."""
    with bar() as progress:
        task = progress.add_task("fashion", total=1)
        for state in study.run():
            progress.update(task, completed=state.done, total=state.total, description=state.doing)


def draw(study: FashionStudy) -> None:
    """What the report shows besides numbers: samples from the same noise, and plans of held-out instances."""
    rows = study.rows()
    pictures = [Picture("teacher", study.config.teacher_steps, None)]
    for nfe in study.config.nfe:
        pictures += [Picture(label, nfe, sampler) for label, sampler in study.shown(rows, nfe)]
    write_samples(study.denoiser, study.heldout, pictures, study.folder)
    write_plans(study.denoiser, study.heldout, pictures, study.folder)


def lines(table: dict) -> list[str]:
    """The rows as aligned text."""
    head = f"{'method':22} {'nfe':>3} {'afs':>5} {'seed':>4} {'perceptual':>10} {'teacher MSE':>11} {'FD-Fashion':>10}"
    ordered = sorted(table["rows"], key=lambda row: (row["nfe"], row["afs"], row["heldout_loss"]))
    rows = [
        f"{r['method']:22} {r['nfe']:3d} {r['afs']!s:>5} {'' if r['seed'] is None else r['seed']:>4} "
        f"{r['heldout_loss']:10.4f} {r['teacher_mse']:11.5f} {'' if r['fd'] is None else format(r['fd'], '.2f'):>10}"
        for r in ordered
    ]
    teacher = table["teacher"]
    return [head, *rows, *([f"teacher: FD-Fashion {teacher['fd']:.2f} with {teacher['nfe']} NFE"] if teacher else [])]

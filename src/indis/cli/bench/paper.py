"""``indis bench paper``: the paper's rows on a converted EDM checkpoint."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import torch
import tyro

from indis.bench import cost, paper, paper_tables
from indis.bench.compare import Comparison
from indis.bench.lineup import CompareConfig, Lineup
from indis.bench.paper_tables import COLUMNS
from indis.bench.suite import Sizes, resized
from indis.cli.bench.compare import OWN, SizeOptions, line_up, run_comparison
from indis.cli.console import JsonFile, command_line, default, emit, say
from indis.cli.model import WithModel, check_loss
from indis.cli.paths import writable, writable_file
from indis.denoise import UNCONDITIONAL
from indis.endpoints import Endpoints
from indis.metrics import fid
from indis.storage import save_json


@dataclass(frozen=True)
class Paper(WithModel):
    """Make the rows of one of the paper's pixel tables. Run it again to go on.

    Samples are compared with --reference by FID, which needs --inception.

    Without it the distance is of coarse colours, which is not FID.

    Example: indis bench paper --table cifar10 --plan-only

    Example: indis bench paper --table ffhq --checkpoint edm/ffhq --reference ffhq64
    """

    keeps: ClassVar[str] = "endpoints/meta.json"

    table: Literal["cifar10", "ffhq", "afhqv2", "imagenet64"] = "cifar10"
    """Data set."""
    checkpoint: Annotated[Path | None, default("needed unless --plan-only", "FOLDER")] = None
    """Folder that `indis convert edm` wrote."""
    out: Path = Path("runs/paper")
    """Folder for the results."""
    steps: tuple[int, ...] = COLUMNS
    """Columns: numbers of network evaluations one after another."""
    methods: tuple[str, ...] = paper.METHODS
    """Rows: names, or the groups all, published, ours and ablation."""
    seeds: tuple[int, ...] = (0,)
    """Seeds of the fits. Several give a spread."""
    afs: tuple[bool, ...] = (False, True)
    """Whether the first step is analytic; of both the better one is shown, as in the paper."""
    loss: str = "lpips"
    """Loss that is tuned; the paper's is lpips."""
    reference: Annotated[Path | None, default("none", "PATH")] = None
    """Reference of the data: NVIDIA's .npz for FID, or a folder of images."""
    inception: Annotated[Path | None, default("no FID", "FILE")] = None
    """Inception's weights for FID, torch-fidelity's weights-inception-2015-12-05-6726825d.pth."""
    bf16: bool = False
    """Run teacher and samples in bfloat16. Fits stay float32."""
    quick: bool = False
    """Use small sizes."""
    plan_only: bool = False
    """Print calls, hours on an H100, disk and memory, and run nothing."""
    sizes: Annotated[SizeOptions, tyro.conf.arg(name="")] = field(default_factory=SizeOptions)
    """Sizes in place of the paper's."""
    json: JsonFile = None
    """Write rows, or the plan."""

    def run(self) -> None:
        """Print the plan, or run the missing cells and print the rows."""
        table = paper_tables.named(self.table)
        wanted = paper.sizes_for(table, brief=self.quick)
        sizes = resized(wanted, asdict(self.sizes))
        config = line_up(self.methods, ("all",), self.steps, self.afs, self.seeds)
        if self.plan_only:
            self._plan(config, sizes)
            return
        bench = self._bench(sizes)
        if self.reference is None:
            sizes = replace(sizes, samples=0)
        writable(self.out)
        writable_file(self.json, {self.out: OWN})
        comparison = Comparison(config, bench, sizes, self.out)
        run_comparison(comparison)
        settings = {"config": asdict(config), "sizes": asdict(sizes)}
        save_json(self.out / "run.json", {"command": command_line(), "config": settings})
        rows = comparison.collect()["rows"]
        for line in paper.lines(rows, bench):
            say(line)
        emit({"rows": rows}, self.json)

    def _plan(self, config: CompareConfig, sizes: Sizes) -> None:
        bench = paper.PaperBench(paper_tables.named(self.table), None, loss=self.loss)
        budget = cost.budget(Lineup(config, bench, sizes, self.out), sizes)
        say(f"{bench.table.title}: {bench.table.file}")
        for line in budget.lines():
            say(line)
        emit(asdict(budget) | {"hours": budget.hours}, self.json)

    def _bench(self, sizes: Sizes) -> paper.PaperBench:
        """Return the bench, after what is missing was refused or said."""
        table = paper_tables.named(self.table)
        if self.checkpoint is None:
            raise ValueError(
                f"checkpoint must be the folder that `indis convert edm {table.file} --out FOLDER` "
                "writes, got none; --plan-only needs none"
            )
        if self.inception is not None and self.reference is None:
            raise ValueError(
                f"reference must be NVIDIA's {table.reference} or a folder of images for FID, got "
                "none"
            )
        bench = paper.PaperBench(
            table, self.checkpoint, loss=self.loss, bf16=self.bf16, device=self.place
        )
        blank = torch.zeros(1, *bench.denoiser.shape)
        nothing = Endpoints(torch.zeros(1), blank, blank, UNCONDITIONAL)
        check_loss(self.loss, bench.loss, bench.denoiser, nothing)  # now, not after the teacher
        if self.inception is None:
            say(f"no FID: it needs --inception {fid.WEIGHTS} and --reference {table.reference}")
            offer = "is measured" if self.reference else "needs --reference and a folder of images"
            say(f"{paper.COARSE}, which is not FID, {offer}")
        if self.reference is not None and sizes.samples:
            bench.judged_by = paper.judge(
                table, bench.denoiser.shape, self.reference, self.inception
            )
        return bench

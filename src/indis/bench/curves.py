"""Learning curves: what an instance gains over a converged plan for all samples, and what that
takes.

At each number of evaluations there are these lines, judged on the same held-out seeds:

    grid      the base solver, untrained
    god       one learned plan for all samples
    phi       a plan of each sample's own from its noise; for each number of pairs, width and rate
    look      plans made after evaluations too
    local     look with corrections of places
    oracle    each held-out sample's own plan, by descent on its own error: what a plan can do at
              all, and what no policy can reach

phi begins at the god line's plan with a head of zeros, and the best state on the tuning end points'
held-out part is kept, the first one included. So if a rate is too large, the shared plan stays, and
the row says that phi fell back to it.

    folder/endpoints, folder/heldout   teacher end points, those of ``indis bench compare``
    folder/curves/<line>               sampler, learning curve, row
    folder/curves/curves.json          all rows
    folder/curves/samples-nfe<N>       the easiest and the hardest samples, for the report
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from indis import artifact, methods
from indis.bench.cells import FORMAT, read_cell
from indis.bench.compare import CompareProgress
from indis.bench.pictures import Picture, write_samples
from indis.bench.provenance import code_version, made_by
from indis.bench.stages import CHECKPOINT, FIRST_HELDOUT, make_endpoints, read_curve, tune
from indis.bench.suite import Bench
from indis.checks import require_least
from indis.endpoints import Endpoints, load_endpoints
from indis.evaluate import losses_of_pairs
from indis.methods import Method
from indis.policies import LearnedPolicy
from indis.recipe import Recipe
from indis.sampler import Sampler
from indis.sealed import save_record
from indis.storage import digest, save_json
from indis.tuning import Fit

GRID, GOD, PHI, ORACLE = "grid", "god", "phi", "oracle"
SHARED, CLOSED = (GOD,), ("look", "local")  # fitted from the base grid
ROW = "row.json"
PLAN_RATE = 0.1  # of the plan that phi begins at, which is converged: a third of god's


@dataclass(frozen=True)
class CurvesConfig:
    """Which lines there are, and their budgets.

    Raises:
        ValueError: for a number outside its range.
    """

    steps: tuple[int, ...] = (3, 5)
    """Numbers of network evaluations."""
    lines: tuple[str, ...] = (GRID, GOD, ORACLE, PHI, "look", "local")
    """Lines: grid, god, oracle, phi, look, local. phi and oracle need god."""
    pairs: tuple[int, ...] = (4500,)
    """Numbers of teacher end points that phi learns from; the others take the largest."""
    widths: tuple[int, ...] = (128,)
    """Widths of phi."""
    rates: tuple[float, ...] = (0.002,)
    """Learning rates of phi's network. Its plan's is 0.1, as it begins at a converged one."""
    iterations: int = 600
    """Iterations of phi."""
    shared_iterations: int = 300
    """Iterations of god."""
    closed_iterations: int = 150
    """Iterations of look and local."""
    batch: int = 48
    """End points in an iteration."""
    holdout: int = 300
    """End points besides ``pairs`` that choose the best state."""
    heldout: int = 400
    """Other end points, for the reported losses."""
    oracle: int = 100
    """Of these, how many get a plan of their own."""
    oracle_iterations: int = 60
    """Iterations of each sample's own plan."""
    seed: int = 0
    """Seed of the fits."""

    def __post_init__(self) -> None:
        least = {"iterations": 1, "shared_iterations": 1, "closed_iterations": 1, "batch": 1}
        require_least(self, **least, holdout=1, heldout=1, oracle=1, oracle_iterations=1, seed=0)
        known = (GRID, *SHARED, ORACLE, PHI, *CLOSED)
        if unknown := sorted(set(self.lines) - set(known)):
            raise ValueError(f"lines must be among {', '.join(known)}, got {', '.join(unknown)}")
        if {PHI, ORACLE} & set(self.lines) and GOD not in self.lines:
            raise ValueError("lines must have god, at which phi and oracle begin, got none")
        for name in ("steps", "pairs", "widths", "rates"):
            if not (values := getattr(self, name)) or min(values) <= 0:
                raise ValueError(f"{name} must be positive numbers, got {values}")


@dataclass(frozen=True)
class Line:
    """One line at one number of evaluations."""

    kind: str
    nfe: int
    pairs: int
    width: int | None = None  # of phi
    rate: float | None = None  # of phi

    @property
    def name(self) -> str:
        """The name of its folder."""
        own = f"-{self.pairs}-w{self.width}-r{self.rate:g}" if self.kind == PHI else ""
        return f"{self.kind}{own}-nfe{self.nfe}"


class Curves:
    """The learning curves of one bench; iterate :meth:`run`, stop at any time, run again to go on.

    Args:
        config: Which lines.
        bench: The model, its teacher and its loss.
        folder: Where everything is kept.
    """

    def __init__(self, config: CurvesConfig, bench: Bench, folder: Path) -> None:
        self.config, self.bench, self.folder = config, bench, folder
        self.denoiser = bench.denoiser

    def lines(self) -> list[Line]:
        """Return the lines, god before those that begin at it."""
        c, most = self.config, max(self.config.pairs)
        found = []
        for n in c.steps:
            found += [Line(kind, n, most) for kind in (GRID, GOD, ORACLE) if kind in c.lines]
            if PHI in c.lines:
                made = [(p, w, r) for p in c.pairs for w in c.widths for r in c.rates]
                found += [Line(PHI, n, *one) for one in made]
            found += [Line(kind, n, most) for kind in CLOSED if kind in c.lines]
        return found

    def run(self) -> Iterator[CompareProgress]:
        """Make end points, then every line; ``curves.json`` is rewritten after each."""
        c = self.config
        wanted = (("endpoints", max(c.pairs) + c.holdout, 0), ("heldout", c.heldout, FIRST_HELDOUT))
        for name, count, first in wanted:
            for state in make_endpoints(self.bench, self.folder / name, count, first):
                yield CompareProgress(f"teacher {name}", state.done, state.count)
        self.data, _ = load_endpoints(self.folder / "endpoints")
        heldout, _ = load_endpoints(self.folder / "heldout")
        self.heldout = heldout[: c.heldout]
        lines = self.lines()
        for number, line in enumerate(lines, 1):
            if not self._finished(line):
                yield from self._make(line, f"{number}/{len(lines)} {line.name}")
                self.collect()

    def rows(self) -> list[dict[str, Any]]:
        """Return the rows of the lines that are finished."""
        return [self._row(line) for line in self.lines() if self._finished(line)]

    def collect(self) -> dict[str, Any]:
        """Write ``curves.json``, which ``indis bench report`` draws; return its content."""
        rows = self.rows()
        drawn = [
            {name: row[name] for name in ("iteration", "heldout", "seconds")}
            | {"label": row["name"], "steps": row["nfe"]}
            for row in rows
            if row["iteration"]
        ]
        config = asdict(self.config)
        result = {"model": self.bench.name, "config": config, "rows": rows, "curves": drawn}
        save_json(self.folder / "curves" / "curves.json", result)
        return result

    def draw(self, nfe: int, count: int = 10) -> None:
        """Write ``samples-nfe<N>/samples.safetensors``: pictures of the samples that god's plan
        fits best and worst, half of each, by the teacher and by each kind of line.

        Of several lines of phi it is the one with the lowest loss on the tuning end points' part.
        """
        heldout, _ = load_endpoints(self.folder / "heldout")
        fitted = [line for line in self.lines() if line.nfe == nfe and self._is_fitted(line)]
        shown: dict[str, Line] = {}
        for line in sorted(fitted, key=lambda line: min(self._curve(line)["heldout"])):
            shown.setdefault(line.kind, line)
        order = self._losses(self._god(shown[GOD]), heldout).argsort()
        chosen = torch.cat([order[: count // 2], order[-(count - count // 2) :]])
        rows = [Picture("teacher", self.bench.teacher_steps, None)]
        for kind in (GOD, PHI, *CLOSED):
            if kind in shown:
                rows.append(Picture(kind, nfe, artifact.load(self._home(shown[kind]))))
        target = self.folder / "curves" / f"samples-nfe{nfe}"
        write_samples(self.denoiser, heldout[chosen], rows, target, count)

    def _is_fitted(self, line: Line) -> bool:
        return line.kind not in (GRID, ORACLE) and (self._home(line) / ROW).exists()

    def _curve(self, line: Line) -> dict[str, Any]:
        return read_curve(self._home(line))

    def _make(self, line: Line, doing: str) -> Iterator[CompareProgress]:
        home, key = self._home(line), self._key(line)
        curve: dict[str, Any] = {"iteration": [], "heldout": [], "seconds": 0.0}
        extra: dict[str, Any] = {}
        if line.kind == GRID:
            losses = self._losses(self._method(line).untrained(self.denoiser), self.heldout)
        elif line.kind == ORACLE:
            yield CompareProgress(doing, 0, 1)
            losses = self._own_plans(line)
            same = self._losses(self._god(line), self.heldout[: self.config.oracle])
            extra["shared_loss"] = same.mean().item()
        else:
            process = self._fit(line)
            for state in tune(process, home, key, line.name, line.nfe):
                yield CompareProgress(
                    f"{doing} best {state.best:.4f}", state.step, state.iterations
                )
            made = self.bench.provenance() | {"line": asdict(line)}
            artifact.save(process.sampler, home, made)
            curve, losses = (
                self._curve(line),
                self._losses(process.sampler, self.heldout),
            )
            trained = process.train[: self.config.heldout]
            extra["train_loss"] = self._losses(process.sampler, trained).mean().item()
            extra["fell_back"] = line.kind == PHI and not process.improved
        row = asdict(line) | {"name": line.name} | _summary(losses) | extra
        row |= {name: curve[name] for name in ("iteration", "heldout", "seconds")} | made_by()
        save_record(home / ROW, FORMAT, {"identity": key, "row": row})
        (home / CHECKPOINT).unlink(missing_ok=True)

    def _method(self, line: Line) -> Method:
        """The method of a line with its recipe."""
        c = self.config
        common: dict[str, Any] = {
            "holdout": c.holdout,
            "relative": True,
            "batch": c.batch,
            "seed": c.seed,
        }
        if line.kind == PHI:
            assert line.rate is not None
            recipe = Recipe(
                c.iterations,
                lr=PLAN_RATE,
                network_rate=line.rate / PLAN_RATE,
                settle=0.0,
                validate_every=25,
                **common,
            )
        else:
            count = c.closed_iterations if line.kind in CLOSED else c.shared_iterations
            recipe = Recipe(count, validate_every=25, **common)
        kind = methods.named({GRID: GOD, ORACLE: GOD, PHI: "indis"}.get(line.kind, line.kind))
        own = self.bench.own(kind.name) | ({"width": line.width} if line.kind == PHI else {})
        shared = {name: self.bench.shared[name] for name in ("solver", "grid", "loss")}
        fields: dict[str, Any] = shared | own
        return kind(steps=line.nfe, recipe=recipe, **fields)

    def _fit(self, line: Line) -> Fit:
        data = self.data[: line.pairs + self.config.holdout]
        start = self._god(line) if line.kind == PHI else None
        process = self._method(line).tuning(self.denoiser, data, self.bench.loss, start=start)
        assert isinstance(process, Fit)
        return process

    def _god(self, line: Line) -> Sampler:
        """The fitted shared plan that a line begins at."""
        return artifact.load(self._home(Line(GOD, line.nfe, max(self.config.pairs))))

    def _own_plans(self, line: Line) -> Tensor:
        """Losses of held-out samples with plans of their own: the better of before and after."""
        shared, data = self._god(line), self.heldout[: self.config.oracle]
        policy = shared.policy
        assert isinstance(policy, LearnedPolicy)
        before = self._losses(shared, data)
        after = []
        for start in range(0, len(data), self.config.batch):
            part = data[start : start + self.config.batch]
            own = policy.for_samples(len(part))
            # The shared plan's logits are scaled by their sensitivity, and so are these.
            own.logits.scale.copy_(policy.logits.scale)
            own.logits.table.data.copy_(policy.logits.table.detach())
            sampler = Sampler(own, shared.solver)
            count = self.config.oracle_iterations
            # No clipping, and a sum: a sample's steps must not depend on those beside it.
            recipe = Recipe(count, len(part), clip=1e12, holdout=0)
            size = len(part)

            def total(student: Tensor, teacher: Tensor, size: int = size) -> Tensor:
                return size * self.bench.loss(student, teacher)

            for _ in Fit(sampler, self.denoiser, part, total, recipe).run():
                pass
            after.append(self._losses(sampler, part))
        return torch.minimum(before, torch.cat(after))

    def _losses(self, sampler: Sampler, data: Endpoints) -> Tensor:
        return losses_of_pairs(self.denoiser, sampler, data, self.bench.loss)

    def _home(self, line: Line) -> Path:
        return self.folder / "curves" / line.name

    def _key(self, line: Line) -> str:
        """A digest of everything that a line depends on."""
        c = self.config
        made = [asdict(line), describe_method(self._method(line)), c.heldout, max(c.pairs)]
        oracle = [c.oracle, c.oracle_iterations] if line.kind == ORACLE else []
        start = [c.shared_iterations] if line.kind in (PHI, ORACLE) else []
        return digest([self.bench.identity(), code_version(), made, oracle, start])

    def _finished(self, line: Line) -> bool:
        path = self._home(line) / ROW
        return path.exists() and read_cell(path)["identity"] == self._key(line)

    def _row(self, line: Line) -> dict[str, Any]:
        row: dict[str, Any] = read_cell(self._home(line) / ROW)["row"]
        return row


def describe_method(method: Method) -> dict[str, Any]:
    """Return a method's name and fields as JSON."""
    return {"method": method.name, "config": asdict(method)}


def _summary(losses: Tensor) -> dict[str, Any]:
    """Mean, its standard error, and the spread of losses over samples."""
    return {
        "loss": losses.mean().item(),
        "error": (losses.std() / len(losses) ** 0.5).item(),
        "median": losses.median().item(),
        "least": losses.min().item(),
        "largest": losses.max().item(),
        "samples": len(losses),
    }

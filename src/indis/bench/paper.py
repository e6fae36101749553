"""The paper's rows: one of its pixel tables on a converted EDM checkpoint.

It is a comparison (:mod:`indis.bench.compare`) with the paper's settings. The paper gives: teacher
iPNDM with 30 steps on polynomial-7 from sigma 80 to 0.002, 10 000 end points, student iPNDM, LPIPS,
3, 5 and 7 evaluations, and of the analytic first step the better choice. It does not give the
budget of a fit, and which order of iPNDM it takes; these are ours, the order that of the code by
Zhou et al. whose rows it quotes.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from indis import models
from indis.bench.paper_tables import COLUMNS, PaperTable
from indis.bench.suite import Bench, Scores, Sizes
from indis.denoise import Denoiser, to_device_of
from indis.endpoints import Endpoints
from indis.evaluate import (
    Extractor,
    frechet_of_images,
    frechet_of_seeds,
    moments_of_images,
    score_pairs,
)
from indis.metrics import fid
from indis.metrics.frechet import Moments
from indis.models.edm import EDMModel
from indis.models.edm.networks import NETWORKS
from indis.models.edm.preconditioning import EDMPrecond
from indis.recipe import Recipe
from indis.sampler import Sampler
from indis.storage import checksum

METHODS = (
    *("god", "indis", "dmn", "gits", "ld3", "amed", "amed-plugin"),
    *("epd", "epd-plugin", "adasde", "dyweight"),
)
# No fit has seen these. NVIDIA's FIDs take 0 ... 49 999, of a generator on the GPU.
FIRST_SAMPLE = 2_000_000
FID, COARSE = "FID", "FD of 8 x 8 colours"
COLUMN = {FID: "fid", COARSE: "fd_colours"}  # of a row


@dataclass(frozen=True)
class Judge:
    """What samples are compared with, and by which features.

    Args:
        name: of the distance.
        extract: the features.
        reference: moments of the data's features.
        identity: a text that changes with features and reference.
    """

    name: str
    extract: Extractor
    reference: Moments
    identity: str


def judge(
    table: PaperTable, shape: tuple[int, ...], reference: Path, inception: Path | None
) -> Judge:
    """Return FID's judge, or without Inception's weights that of coarse colours.

    Args:
        table: the paper's table, which knows names of files.
        shape: of a picture.
        reference: NVIDIA's ``npz`` for FID, or a folder of images.
        inception: torch-fidelity's weight file.

    Raises:
        FileNotFoundError: if a file is missing.
        ValueError: if the reference is unusable.
        ImportError: if torch-fidelity is needed and missing.
    """
    extract: Extractor = fid.coarse_pixels if inception is None else fid.Inception(inception)
    name, dim = (COARSE, fid.COARSE) if inception is None else (FID, fid.INCEPTION)
    if reference.is_dir():
        moments = moments_of_images(fid.image_batches(reference, shape), extract, dim)
    elif reference.is_file():
        moments = fid.moments_from_npz(reference)
    else:
        raise FileNotFoundError(
            f"{reference} does not exist; a reference is NVIDIA's {table.reference} or a folder of "
            "images"
        )
    if len(moments.mean) != dim:
        raise ValueError(
            f"reference must hold {dim} features for {name}, got {len(moments.mean)} in {reference}"
        )
    weights = "" if inception is None else checksum(inception)
    sums = [float(moments.mean.sum()), float(moments.covariance.sum())]
    return Judge(name, extract, moments, f"{name} {weights} {sums}")


class PaperBench(Bench):
    """A converted checkpoint under the paper's settings.

    Args:
        table: the paper's table.
        checkpoint: folder of the checkpoint; None for a network without weights, which can be
            counted and not run.
        judge: of samples; None for none.
        loss: what is tuned; the paper's is LPIPS.
        bf16: whether teacher and samples run in bfloat16. Fits stay in float32.
        device: where it runs.

    Raises:
        ValueError: if the checkpoint is of other pictures or classes than the table.
    """

    name, loss_name = "edm", "lpips"
    grids = ("polynomial:7",)
    teacher_solver, teacher_grid, teacher_steps = "ipndm:4", "polynomial:7", 30
    shard = 500
    full = Sizes(10_000, 1000, 50_000, Recipe(1000, 48, holdout=500, validate_every=50))
    brief = Sizes(600, 200, 1000, Recipe(60, 32, holdout=100, validate_every=20))

    def __init__(
        self,
        table: PaperTable,
        checkpoint: Path | None,
        *,
        judge: Judge | None = None,
        loss: str = "lpips",
        bf16: bool = False,
        device: torch.device | str = "cpu",
    ) -> None:
        self.table, self.judged_by, self.loss_name = table, judge, loss
        self.spec = f"edm:{checkpoint}"
        self.denoiser = models.load(self.spec, device) if checkpoint else unweighted(table)
        _require_pictures_of(table, self.denoiser)
        half = checkpoint and bf16
        self.drawing: Denoiser = models.load(f"{self.spec},bf16", device) if half else self.denoiser
        self.shared = {"solver": "ipndm:4", "grid": "polynomial:7", "loss": loss}

    def provenance(self) -> dict[str, Any]:
        """Which model and teacher the end points are of; the model as commands take it."""
        return super().provenance() | {"model": self.spec}

    def identity(self) -> list[str]:
        """Weights, and what samples are judged by."""
        return [self.denoiser.fingerprint, self.judged_by.identity if self.judged_by else ""]

    def judge(self, sampler: Sampler, heldout: Endpoints, samples: int) -> Scores:
        """Loss and MSE on held-out pairs, and the distance to the data on ``samples`` new seeds."""
        scores: Scores = score_pairs(self.denoiser, sampler, heldout, self.loss, batch=100).row()
        if samples and (by := self.judged_by):
            seeds = range(FIRST_SAMPLE, FIRST_SAMPLE + samples)
            distance = frechet_of_seeds(self.drawing, sampler, seeds, by.extract, by.reference)
            scores |= {COLUMN[by.name]: distance, "samples": samples}
        return scores

    def judge_teacher(self, data: Endpoints, samples: int) -> Scores:
        """The distance to the data of end points that exist anyway."""
        count, by = min(samples, len(data)), self.judged_by
        if count < 2 or by is None:
            return {"samples": 0}
        targets = (
            self.denoiser.decode(to_device_of(data.target[i : min(i + 250, count)], self.denoiser))
            for i in range(0, count, 250)
        )
        distance = frechet_of_images(targets, by.extract, by.reference)
        return {COLUMN[by.name]: distance, "samples": count}

    def notes(self, sizes: Sizes) -> list[str]:
        """Seeds and precision."""
        dtype = "float32" if self.drawing is self.denoiser else "bfloat16"
        name = self.judged_by.name if self.judged_by else "No distance to the data"
        return [
            f"{name}: {sizes.samples} seeds from {FIRST_SAMPLE}, noise from the CPU's generator, "
            f"network in {dtype}.",
            *self.table.slips,
        ]


def unweighted(table: PaperTable) -> EDMModel:
    """Return the published network of a table without weights, on the meta device."""
    with torch.device("meta"):
        network = NETWORKS[table.network](**table.arguments)
    return EDMModel(network, EDMPrecond(), table.arguments["img_resolution"])


def _require_pictures_of(table: PaperTable, denoiser: Denoiser) -> None:
    """Refuse a checkpoint of another data set, as far as shapes tell."""
    blank = unweighted(table)
    wanted = blank.shape, blank.classes
    given = tuple(denoiser.shape), getattr(denoiser, "classes", 0)
    if given != wanted:
        raise ValueError(
            f"checkpoint must be of {table.title}: pictures {wanted[0]} and {wanted[1]} classes, "
            f"got {given[0]} and {given[1]}"
        )


def sizes_for(table: PaperTable, *, brief: bool) -> Sizes:
    """Return the paper's sizes, or small ones; calls are recomputed where memory demands it."""
    sizes = PaperBench.brief if brief else PaperBench.full
    return replace(sizes, recipe=replace(sizes.recipe, recompute=table.recompute))


def own_values(rows: Iterable[dict[str, Any]], column: str) -> dict[str, dict[int, list[float]]]:
    """Return the values of each method at each number of evaluations, one for each seed.

    Of rows with and without an analytic first step those with the lower mean stay, as in the paper.

    Args:
        rows: of a comparison.
        column: what is compared, the lower the better.
    """
    groups: dict[tuple[str, int], dict[bool, list[float]]] = {}
    for row in rows:
        if row.get(column) is not None:
            group = groups.setdefault((row["method"], row["nfe"]), {})
            group.setdefault(row["afs"], []).append(row[column])
    found: dict[str, dict[int, list[float]]] = {}
    for (method, nfe), group in groups.items():
        found.setdefault(method, {})[nfe] = min(group.values(), key=statistics.mean)
    return found


def lines(rows: Iterable[dict[str, Any]], bench: PaperBench) -> Iterator[str]:
    """Yield our rows, each beside what was published for it.

    Args:
        rows: of a comparison on the bench.
        bench: the bench.
    """
    rows = list(rows)
    name = bench.judged_by.name if bench.judged_by else f"the held-out {bench.loss_name}"
    column = COLUMN.get(name, "heldout_loss")
    own, published = own_values(rows, column), bench.table.published
    yield f"{bench.table.title}: ours is {name}, all others are FID"
    if name != FID:
        yield f"{name} and FID are different quantities and do not compare with each other"
    columns = sorted({*COLUMNS, *(nfe for values in own.values() for nfe in values)})
    yield f"{'':16} {'source':10}" + "".join(f"{f'{nfe} NFE':>16}" for nfe in columns)
    for method in {**own, **published}:
        if method in own:
            cells = [_with_spread(own[method].get(nfe, [])) for nfe in columns]
            yield f"{method:16} {'ours':10}" + "".join(f"{cell:>16}" for cell in cells)
        for row in published.get(method, ()):
            known = dict(zip(COLUMNS, row.values, strict=True))
            cells = ["-" if known.get(n) is None else f"{known[n]:.2f}" for n in columns]
            yield f"{method:16} {row.source:10}" + "".join(f"{cell:>16}" for cell in cells)
    for slip in bench.table.slips:
        yield f"note: {slip}"


def _with_spread(values: list[float]) -> str:
    """The mean over seeds, and their standard deviation if there are several."""
    if not values:
        return "-"
    mean = f"{statistics.mean(values):.4g}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.2g}"

"""The page: the files of a run folder, and the blocks that each of them becomes."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from operator import methodcaller
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from jinja2 import Environment, FileSystemLoader
from matplotlib.figure import Figure

from indis.bench.report import charts, comparison, lines, pictures, plans, tables
from indis.bench.report.compare_charts import drawings
from indis.bench.report.results_table import FILE, homes, results_table
from indis.bench.report.tables import Cell, Group, Table
from indis.storage import load_json, load_tensors, write_aside

SAMPLES, TOY, SCATTER = "samples.safetensors", "toy.json", "toy_scatter.safetensors"
CURVES = "curves.json"
TITLE = "INDIS: few-step sampling with instance-aware discretizations"


@dataclass(frozen=True)
class Text:
    """Paragraphs, as they are or as code."""

    paragraphs: list[str]
    code: bool = False
    kind: str = field(default="text", init=False)


@dataclass(frozen=True)
class Picture:
    """A figure and the CSS width that it is drawn for."""

    uri: str
    width: int
    alt: str
    caption: str
    kind: str = field(default="picture", init=False)


@dataclass(frozen=True)
class Strips:
    """Rows of samples, aligned by starting noise."""

    rows: list[tuple[str, str]]
    width: int
    caption: str
    kind: str = field(default="strips", init=False)


T = TypeVar("T")
Block = Text | Table | Picture | Strips


@dataclass(frozen=True)
class Section:
    """A file and the blocks that it becomes; ``build`` gets the folder's file, loaded."""

    name: str
    title: str
    file: str
    build: Callable[[Any], Iterator[Block]]


@dataclass(frozen=True)
class Rendered:
    """A section as the template prints it."""

    name: str
    title: str
    blocks: list[Block]


def write_report(folder: Path, out: Path, title: str = TITLE) -> list[str]:
    """Write the page that the files in ``folder`` make, and return its sections' names in order.

    A comparison of several models has a folder for each; its sections are named after it.

    Raises:
        FileNotFoundError: if the folder is missing or has none of the known files.
        ValueError: if one of them is malformed.
    """
    present = _present(folder)
    if not present:
        names = ", ".join(section.file for section in SECTIONS)
        raise FileNotFoundError(
            f"{folder} has no results to report; expected at least one of {names}"
        )
    rendered = [_render(section, home, folder) for home, section in present]
    sections = [section for section in rendered if section.blocks]
    lead = _checked(folder / "run.json", _lead) if (folder / "run.json").is_file() else []
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True
    )
    page = environment.get_template("template.html").render(
        title=title, lead=lead, sections=sections
    )
    write_aside(out, methodcaller("write_text", page, encoding="utf-8"))
    return [section.name for section in sections]


def write_figures(folder: Path, out: Path) -> list[Path]:
    """Write the figures of ``folder`` for a document, and return their paths.

    ``compare-<model>-<figure>.png`` of comparisons, ``toy_fig3.png`` and ``toy_fig2.png`` of the
    toy study (named after the paper's figures), ``curves.png`` of learning curves, or
    ``curves-<name>.png`` of those in a folder of that name, and ``picture.png`` of samples
    (:func:`readme_picture`).

    Raises:
        FileNotFoundError: if there are none.
        ValueError: if one of them is malformed.
    """
    made: dict[str, bytes] = {}
    for home, section in _present(folder):
        made |= _drawn(section, home, folder)
    if not made:
        raise FileNotFoundError(
            f"{folder} has none of {', '.join([*_FIGURES, SAMPLES])} to draw, nor has a folder "
            "in it"
        )
    for name, picture in made.items():
        write_aside(out / name, methodcaller("write_bytes", picture))
    return [out / name for name in made]


def _drawn(section: Section, home: Path, folder: Path) -> dict[str, bytes]:
    """The figures of a section's file by their names, which two models' folders must not share."""
    if section.file == SAMPLES:
        return {"picture.png": _readme_png(home)}
    made = _checked(home / section.file, _FIGURES[section.file]) if section.file in _FIGURES else {}
    alone = home == folder or section.file != CURVES
    return made if alone else {f"curves-{home.name}.png": picture for picture in made.values()}


def _learned(content: Mapping[str, Any]) -> dict[str, bytes]:
    """A comparison of grids alone has no curves."""
    rows = content["curves"]
    return {"curves.png": charts.png(lines.learning_curves(rows))} if rows else {}


def _compared(content: Mapping[str, Any]) -> dict[str, bytes]:
    return {
        f"compare-{results.model.replace('/', '-') or 'model'}-{drawing.name}.png": charts.png(
            drawing.figure
        )
        for results in comparison.read(content)
        for drawing in drawings(results)
    }


_FIGURES: dict[str, Callable[[Any], dict[str, bytes]]] = {
    FILE: _compared,
    TOY: lambda content: {"toy_fig3.png": charts.png(charts.toy_curves(content["cells"]))},
    CURVES: _learned,
    SCATTER: lambda content: (
        {"toy_fig2.png": charts.png(charts.toy_scatter(content[0]))} if _has_errors(content) else {}
    ),
}


def readme_picture(folder: Path, out: Path) -> None:
    """Write one PNG, 1200 pixels wide and at most 300 kB, of the folder's samples and toy error
    curve.

    Raises:
        FileNotFoundError: if the folder has neither.
        ValueError: if one of them is malformed.
    """
    if not (folder / SAMPLES).is_file() and not (folder / TOY).is_file():
        raise FileNotFoundError(f"{folder} has neither {SAMPLES} nor {TOY} to draw")
    write_aside(out, methodcaller("write_bytes", _readme_png(folder)))


def _readme_png(folder: Path) -> bytes:
    samples, toy = folder / SAMPLES, folder / TOY
    rows = _checked(samples, _rows) if samples.is_file() else {}
    cells = _checked(toy, lambda content: content["cells"]) if toy.is_file() else []
    return pictures.readme_png(rows, cells)


# --- reading


def _present(folder: Path) -> list[tuple[Path, Section]]:
    """What there is to show, in order, and the folder that it lies in."""
    return [
        (home, section)
        for home in homes(folder)
        for section in SECTIONS
        if (home / section.file).is_file()
    ]


def _render(section: Section, home: Path, folder: Path) -> Rendered:
    blocks = _checked(home / section.file, lambda content: list(section.build(content)))
    if home == folder:
        return Rendered(section.name, section.title, blocks)
    return Rendered(f"{home.name}/{section.name}", f"{section.title}: {home.name}", blocks)


def _checked(path: Path, use: Callable[[Any], T]) -> T:
    """What ``use`` makes of the file's content; whatever goes wrong in it is the file's fault.

    Raises:
        ValueError: with one sentence that names the file.
    """
    content = load_json(path) if path.suffix == ".json" else _arrays(path)
    try:
        return use(content)
    except (
        ArithmeticError,
        AssertionError,
        AttributeError,
        LookupError,
        TypeError,
        ValueError,
    ) as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise ValueError(f"{path} is malformed ({reason})") from error


def _arrays(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    tensors, meta = load_tensors(path)
    return {name: value.numpy() for name, value in tensors.items()}, meta or {}


def _strings(value: Any) -> list[str]:
    if not isinstance(value, list):
        raise ValueError(f"a list of strings was expected, got {value!r}")
    return [str(item) for item in value]


def _picture(figure: Figure, alt: str, caption: str) -> Picture:
    width = round(figure.get_figwidth() * charts.INCH)
    return Picture(charts.data_uri(charts.png(figure)), width, alt, caption)


# --- sections

Tensors = tuple[Mapping[str, np.ndarray], Mapping[str, Any]]


def _rows(content: Tensors) -> dict[str, np.ndarray]:
    tensors, meta = content
    return pictures.ordered(tensors, meta.get("order", ()))


def _samples(content: Tensors) -> Iterator[Block]:
    rows = _rows(content)
    columns = pictures.shared_columns(rows)
    strips = {label: pictures.strip(images, columns) for label, images in rows.items()}
    width = next(iter(strips.values()))[1]
    uris = [(label, charts.data_uri(picture)) for label, (picture, _) in strips.items()]
    yield Strips(
        uris,
        width,
        f"All samples of a column start from the same noise; {columns} starting noises.",
    )


def _results(content: Mapping[str, Any]) -> Iterator[Block]:
    for results in comparison.read(content):
        yield results_table(results)
        for drawing in drawings(results):
            yield _picture(drawing.figure, drawing.alt, drawing.caption)
    if content.get("notes"):
        yield Text(_strings(content["notes"]))


def _plans(content: Tensors) -> Iterator[Block]:
    tensors, meta = content
    if set(tensors) <= {"label"}:  # no method of that run decides for single instances
        return
    found = plans.parse(tensors, meta)
    count = max(len(values) for plan in found for values in plan.instance.values())
    timesteps, violins = plans.timesteps(found), plans.violins(found)
    if timesteps:
        caption = (
            f"Where the interior timesteps of {count} instances lie; every node's histogram has "
            "the same height."
        )
        yield _picture(timesteps, "Distribution of the timesteps", caption)
    if violins:
        caption = "The shift of the time asked about, and the scale of the answer, at every step. "
        caption += "Shifts are relative to the time itself." if plans.is_noise_level(found) else ""
        yield _picture(violins, "Distribution of shifts and scales", caption.strip())
    if "label" in tensors:
        yield _class_picture(found, tensors["label"], meta)


def _class_picture(
    found: Sequence[plans.Plan], labels: np.ndarray, meta: Mapping[str, Any]
) -> Picture:
    named = meta.get("classes", [])
    names = [str(named[k]) if k < len(named) else f"class {k}" for k in np.unique(labels)]
    caption = (
        "A class's mean relative to the mean of all instances, in percent. Columns are steps; τ "
        "is where they start."
    )
    return _picture(
        plans.class_map(found, labels, names), "Mean scale and timestep by class", caption
    )


def _curves(content: Mapping[str, Any]) -> Iterator[Block]:
    if not content["curves"]:  # a comparison in which nothing was learned
        return
    figure = lines.learning_curves(content["curves"])
    caption = (
        "Loss on held-out pairs during the fit, every seed; with AFS only where a method has no "
        "other."
    )
    yield _picture(figure, "Held-out loss against iteration", caption)


def _toy(content: Mapping[str, Any]) -> Iterator[Block]:
    cells = content["cells"]
    yield Text([tables.paper_sentence(cells)])
    yield tables.paper_table(cells)
    note = (
        "Held-out priors, except for the oracle. Its plans are fitted to single training priors: "
        "a bound, not a method."
    )
    yield _picture(charts.toy_curves(cells), "Error against the number of steps", note)
    for freedoms in tables.toy_freedoms(cells):
        yield tables.toy_table(cells, freedoms)
    yield Text([_toy_setting(cells[0], content.get("units", {}))])


def _toy_setting(cell: tables.Row, units: Mapping[str, str]) -> str:
    """Size, floors and units in words."""
    floors = ", ".join(
        f"{tables.TOY_METRICS[m]} {tables.number(cell[f'{m}_floor'])}" for m in ("kl", "w1")
    )
    seeds = f"tree seed {cell['tree_seed']}, seed {cell['seed']}"
    size = f"{cell['priors']} priors a split, classes {cell['classes']}, {seeds}."
    described = " ".join(
        f"{tables.TOY_METRICS.get(name, name)}: {text}." for name, text in units.items()
    )
    return f"{size} Floors (exact samples of the same size): {floors}. {described}".strip()


def _scatter(content: Tensors) -> Iterator[Block]:
    if not _has_errors(content):  # of a study without three steps
        return
    note = (
        "Each point is a starting noise, its colour the squared distance between where three "
        "Euler steps end and where the teacher does. One scale for all panels; means are over all "
        f"points, {charts.POINTS} are drawn at most."
    )
    yield _picture(charts.toy_scatter(content[0]), "Euler-3 error over the starting point", note)


def _has_errors(content: Tensors) -> bool:
    return any(name.startswith("error ") for name in content[0])


def _lead(content: Mapping[str, Any]) -> list[str]:
    return _strings(content.get("text", []))


def _run(content: Mapping[str, Any]) -> Iterator[Block]:
    if "command" in content:
        yield Text([str(content["command"])], code=True)
    if "seconds" in content:
        yield Text([f"It took {_duration(float(content['seconds']))}."])
    for name, head in (("config", "setting"), ("versions", "package")):
        if content.get(name):
            rows = [[Cell(str(k)), Cell(_plain(v))] for k, v in content[name].items()]
            yield Table(
                [head, "value" if name == "config" else "version"], [Group("", rows)], words=True
            )


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} seconds" if seconds < 120 else f"{seconds / 60:.0f} minutes"


SECTIONS = (
    Section("samples", "Samples", SAMPLES, _samples),
    Section("results", "Comparison", FILE, _results),
    Section("plans", "Plans", "plans.safetensors", _plans),
    Section("curves", "Learning curves", CURVES, _curves),
    Section("toy", "Toy: error against the number of steps", TOY, _toy),
    Section("toy_scatter", "Toy: error over the starting point", SCATTER, _scatter),
    Section("run", "How this was made", "run.json", _run),
)

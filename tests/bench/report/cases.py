"""A synthetic run folder with every file, and what the page makes of it."""

import base64
import html
import io
import itertools

import numpy as np
import torch

from indis.storage import save_json, save_tensors

FREEDOMS = ("tau", "tau+dtau", "tau+dtau+gamma")
FACTORS = {"uniform": 2.0, "global": 1.0, "instance": 0.6, "oracle": 0.4}


def toy_cell(policy, freedoms, steps, split):
    size = FACTORS[policy] * (1 - 0.15 * freedoms.count("+")) if policy != "uniform" else 2.0
    size *= 1.05 if split == "heldout" else 1.0
    floor = {"kl_floor": 0.01, "w1_floor": 0.004}
    cell = {"policy": policy, "freedoms": freedoms, "steps": steps, "nfe": steps, "split": split}
    cell |= {
        "squared_distance": 0.22 * size / steps**2,
        "kl": 0.01 + 0.9 * size / steps**2,
        "w1": 0.004 + 0.2 * size / steps**1.5,
    }
    return (
        cell
        | floor
        | {
            "priors": 500,
            "classes": "A",
            "tree_seed": 2,
            "seed": 0,
            "parameters": 9,
            "fit_seconds": 1.0,
        }
    )


def toy(steps=(3, 4, 5, 6, 7, 8, 9, 10)):
    splits = ("train", "heldout")
    cells = [toy_cell("uniform", "tau", n, split) for n in steps for split in splits]
    learned = itertools.product(("global", "instance"), FREEDOMS, steps, splits)
    cells += [toy_cell(*which) for which in learned]
    cells += [toy_cell("oracle", freedoms, n, "train") for freedoms in FREEDOMS for n in steps]
    return {
        "study": "toy",
        "config": {},
        "units": {"kl": "nats", "fixed": "both ends"},
        "cells": cells,
    }


def scatter(count=1500):
    generator = torch.Generator().manual_seed(0)
    tensors = {
        f"noise_{split}": torch.randn(count, 2, generator=generator)
        for split in ("train", "heldout")
    }
    for policy, freedoms, split in itertools.product(
        FACTORS, (FREEDOMS[0], FREEDOMS[-1]), ("train", "heldout")
    ):
        if (policy == "oracle" and split == "heldout") or (
            policy == "uniform" and freedoms != "tau"
        ):
            continue
        distance = tensors[f"noise_{split}"].norm(dim=1)
        noise = torch.randn(count, generator=generator).exp()
        tensors[f"error {policy} {freedoms} {split}"] = (
            0.01 * FACTORS[policy] * (3 * distance).sin().abs() * noise
        )
    return tensors


def row(method, nfe, loss, seed=0, afs=False, **more):
    """A row of a comparison; without a seed it is a heuristic grid."""
    fitted = {"freedoms": "tau+dtau+gamma", "parameters": 9, "fit_seconds": 10.0 * nfe}
    plain = {"freedoms": "none", "parameters": 0}
    made = {
        "model": "fashion",
        "method": method,
        "steps": nfe + afs,
        "afs": afs,
        "seed": seed,
        "nfe": nfe,
        "calls": nfe,
    }
    made |= {"solver": "IPNDM", "heldout_loss": loss, "teacher_mse": loss / 3, "pairs": 1000}
    return made | (plain if seed is None else fitted) | more


def fashion():
    """Two grids and two methods at three NFE, at one of them also with AFS."""
    rows = []
    for n, afs in ((3, False), (3, True), (5, False), (7, False)):
        rows.append(
            row(
                "polynomial:7",
                n,
                0.9 / n,
                None,
                afs,
                perceptual=0.9 / n,
                fd=60.0 / n,
                samples=10_000,
            )
        )
        rows.append(row("log_snr", n, 1.4 / n, None, afs, perceptual=1.4 / n, fd=None, samples=0))
        for seed, (method, loss, fd) in itertools.product(
            range(3), (("god", 0.5, 40.0), ("indis", 0.3, 30.0))
        ):
            shift = 0.02 * seed if method == "god" else 0.01 * seed - 0.01 * afs
            scores = {"perceptual": (loss + shift) / n, "fd": fd / n + seed, "samples": 10_000}
            rows.append(row(method, n, (loss + shift) / n, seed, afs, **scores))
    teacher = {"model": "fashion", "method": "teacher", "fd": 2.5, "nfe": 30}
    return {"rows": rows, "teacher": teacher, "notes": ["A note <with> markup."]}


def toy_rows(variants, nfes=(3, 4, 5)):
    """One seed of many methods on the toy, each a little worse than the one before."""
    rows = []
    for n, (k, name) in itertools.product(nfes, enumerate(variants)):
        loss = 0.01 * (1 + 0.3 * k) * (3 / n) ** 2
        scores = {"model": "toy", "kl": 0.13 + loss, "w1": 0.01 + loss, "fit_seconds": 1.5**k}
        rows.append(row(name, n, loss, **scores))
    rows += [row("uniform", n, 0.2 * (3 / n) ** 2, None, model="toy", kl=3.0, w1=0.3) for n in nfes]
    return {
        "rows": rows,
        "teacher": {"model": "toy", "nfe": 100, "kl": 0.12, "w1": 0.01},
        "notes": [],
    }


def samples(count=16, size=28):
    y, x = np.mgrid[:size, :size] / size - 0.5
    base = np.stack([np.hypot(x * (1 + k % 5), y * (1 + k % 3)) < 0.4 for k in range(count)])
    labels = ["teacher (30 NFE)", "INDIS N=3", "global N=3", "polynomial:7 N=3"]
    shades = [
        torch.from_numpy((base * (220 - 40 * i) + 10 * i).astype(np.uint8))
        for i in range(len(labels))
    ]
    return dict(zip(labels, shades, strict=True)), {
        "order": [labels[0], labels[3], labels[2], labels[1]]
    }


def karras(steps):
    return (
        (80 ** (1 / 7)) + np.linspace(0, 1, steps + 1) * (0.002 ** (1 / 7) - 80 ** (1 / 7))
    ) ** 7


def plans(count=400, steps=(3, 4, 6)):
    rng = np.random.default_rng(0)
    tensors, meta = {"label": torch.arange(count) % 10}, {}
    for n in steps:
        base = karras(n)
        shift = rng.normal(size=(count, n + 1)) * 0.3 + 0.05 * (np.arange(count) % 10)[:, None]
        shift[:, [0, -1]] = 0
        tau = base * np.exp(shift)
        gamma = 1 + 0.05 * rng.normal(size=(count, n)) + 0.01 * (np.arange(count) % 10)[:, None]
        tensors[f"tau N={n}"] = torch.from_numpy(tau)
        tensors[f"dtau N={n}"] = torch.from_numpy(0.1 * tau[:, :-1] * rng.normal(size=(count, n)))
        tensors[f"gamma N={n}"] = torch.from_numpy(gamma)
        meta[f"base N={n}"] = {"tau": base.tolist()}
        meta[f"global N={n}"] = {
            "tau": (base * 1.1).tolist(),
            "dtau": (base[:-1] * 0.02).tolist(),
            "gamma": [1.02] * n,
        }
    return tensors, meta


def curves():
    at = list(range(0, 2001, 100))
    made = [
        {
            "label": f"{label}-nfe{n}-s0",
            "steps": n,
            "iteration": at,
            "heldout": [size / n * (0.3 + np.exp(-i / 400)) for i in at],
        }
        for n in (3, 4, 5, 6)
        for label, size in (("god", 1.0), ("indis-without-dtau", 0.8), ("indis", 0.6))
    ]
    return {"curves": made}


RUN = {
    "command": "indis demo --out runs/demo",
    "config": {"steps": [3, 5], "solver": "ipndm"},
    "seconds": 431.0,
    "versions": {"torch": "2.13.0"},
    "text": ["A demonstration run."],
}


def write(folder, leave_out=()):
    writers = {
        "toy.json": lambda path: save_json(path, toy()),
        "toy_scatter.safetensors": lambda path: save_tensors(path, scatter()),
        "results.json": lambda path: save_json(path, fashion()),
        "samples.safetensors": lambda path: save_tensors(path, *samples()),
        "plans.safetensors": lambda path: save_tensors(path, *plans()),
        "curves.json": lambda path: save_json(path, curves()),
        "run.json": lambda path: save_json(path, RUN),
    }
    for name, write_to in writers.items():
        if name not in leave_out:
            write_to(folder / name)
    return folder


def report(folder):
    from indis.bench.report.page import write_report

    sections = write_report(folder, folder / "report.html")
    return sections, html.unescape((folder / "report.html").read_text(encoding="utf-8"))


def pixels(uri):
    from matplotlib import image

    return image.imread(io.BytesIO(base64.b64decode(uri.split(",", 1)[1])), format="png")

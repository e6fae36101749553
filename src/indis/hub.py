"""Artifacts in a repository of the Hugging Face Hub, or in a folder that looks like one.

    README.md                   the model card
    plan.png                    the plans that it shows
    nfe-3/config.json           an artifact for each number of network evaluations
    nfe-3/policy.safetensors

A token is never read, taken or written here: huggingface_hub finds the user's own.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from indis import artifact
from indis.denoise import Denoiser
from indis.evaluate import realized_plans
from indis.export import lost_in_sigmas, sigmas
from indis.plan import Discretization
from indis.sampler import Sampler
from indis.storage import load_json, write_aside

PATTERNS = ["README.md", "plan.png", *(f"nfe-*/{name}" for name in artifact.FILES)]
SHOWN_SEEDS = 8


def save_pretrained(
    artifacts: Sequence[Path | str],
    folder: Path | str,
    denoiser: Denoiser,
    *,
    base_model: str | None = None,
    licence: str | None = None,
) -> Path:
    """Write artifacts of several numbers of evaluations into one folder, with a model card.

    Args:
        artifacts: Folders, or names of artifacts that ship, each of another number.
        folder: Where to write. Artifacts of an earlier set leave it; other files stay.
        denoiser: The model that they were fitted to, for the plot of their plans.
        base_model: Its repository on the hub, such as "user/model", if it has one.
        licence: The licence of the artifacts, as the hub spells it; None leaves it open.

    Returns:
        The folder.

    Raises:
        ValueError: If two artifacts have the same number of evaluations, there is none, or one was
            made for another kind of model. Nothing is written then.
        FileNotFoundError: If one is missing.
    """
    found: dict[int, tuple[Path, Sampler]] = {}
    for name in artifacts:
        sampler = artifact.load(name)
        if sampler.nfe in found:
            raise ValueError(f"artifacts must differ in their evaluations, got {sampler.nfe} twice")
        found[sampler.nfe] = artifact.find(name), sampler
    if not found:
        raise ValueError("artifacts must be at least one, got none")
    folder, found = Path(folder), dict(sorted(found.items()))
    samplers = {nfe: sampler for nfe, (_, sampler) in found.items()}
    configs = {nfe: load_json(source / "config.json") for nfe, (source, _) in found.items()}
    plans = {
        nfe: realized_plans(denoiser, sampler, range(SHOWN_SEEDS))
        for nfe, sampler in samplers.items()
    }
    for old in folder.glob("nfe-*"):  # of an earlier set, which the card would not name
        if old.name not in {f"nfe-{nfe}" for nfe in found}:
            shutil.rmtree(old)
    for nfe, (source, _) in found.items():
        for name in reversed(artifact.FILES):  # a folder with a config is complete
            write_aside(
                folder / f"nfe-{nfe}" / name,
                lambda path, file=source / name: shutil.copyfile(file, path),  # type: ignore[misc]
            )
    write_aside(folder / "plan.png", lambda path: _plot(plans, denoiser, path))
    text = card(samplers, configs, plans, denoiser.name, base_model, licence)
    write_aside(folder / "README.md", lambda path: path.write_text(text, encoding="utf-8"))
    return folder


def from_pretrained(
    source: Path | str, nfe: int | None = None, *, revision: str | None = None
) -> Sampler:
    """Read a sampler of :func:`save_pretrained` from a folder or a repository.

    Args:
        source: A folder, or a repository such as "user/repo".
        nfe: The number of network evaluations; None if there is only one.
        revision: Of a repository: a commit, a tag or a branch. Only a commit is always the same.

    Raises:
        ValueError: If a repository comes without a revision, a folder with one, or there is no
            such number.
        FileNotFoundError: If there is no artifact.
    """
    folder = Path(source)
    if folder.is_dir():
        if revision is not None:
            raise ValueError(f"revision must be left out for a folder, got {revision!r}")
    elif revision is None:
        raise ValueError(
            f"revision must be given for the repository {source}, such as a commit, got none"
        )
    else:
        from huggingface_hub import snapshot_download

        fetched = snapshot_download(str(source), revision=revision, allow_patterns=PATTERNS)
        folder = Path(fetched)
    known = {int(path.parent.name[4:]): path.parent for path in folder.glob("nfe-*/config.json")}
    if not known:
        raise FileNotFoundError(f"{source} holds no artifact: nfe-N/config.json is missing")
    if nfe is None and len(known) == 1:
        (nfe,) = known
    if nfe not in known:
        listed = ", ".join(map(str, sorted(known)))
        raise ValueError(f"nfe must be one of {listed}, got {nfe}")
    return artifact.load(known[nfe])


def push_to_hub(folder: Path | str, repo: str, *, private: bool = False) -> str:
    """Upload a folder of :func:`save_pretrained`, and nothing else that lies in it.

    Args:
        folder: The folder.
        repo: The repository, such as "user/repo"; it is made if there is none.
        private: Whether a new one is private.

    Returns:
        The commit, which :func:`from_pretrained` takes as its revision.

    Raises:
        FileNotFoundError: If the folder has no model card.
    """
    folder = Path(folder)
    if not (folder / "README.md").is_file():
        raise FileNotFoundError(f"{folder} has no README.md: write it with save_pretrained")
    from huggingface_hub import HfApi

    api = HfApi()
    api.create_repo(repo, private=private, exist_ok=True)
    done = api.upload_folder(
        repo_id=repo,
        folder_path=folder,
        allow_patterns=PATTERNS,
        commit_message="Add samplers of INDIS",
    )
    commit: str = done.oid
    return commit


def card(
    samplers: Mapping[int, Sampler],
    configs: Mapping[int, Mapping[str, Any]],
    plans: Mapping[int, Discretization],
    model: str,
    base_model: str | None = None,
    licence: str | None = None,
) -> str:
    """Return the model card of samplers by their numbers of evaluations.

    Args:
        samplers: The samplers.
        configs: Their ``config.json``.
        plans: Realized plans of some samples.
        model: The name of the model that they were fitted to.
        base_model: Its repository.
        licence: Of the samplers.
    """
    head = ["library_name: indis", "tags: [indis, diffusion, few-step]"]
    head += [f"base_model: {base_model}"] if base_model else []
    head += [f"license: {licence}"] if licence else []
    rows = []
    for nfe, sampler in samplers.items():
        record = configs[nfe].get("provenance", {})
        loss = record.get("config", {}).get("loss", "loss")
        value = record.get("validation_loss")
        result = "not recorded" if value is None else f"{value:.4g} ({loss})"
        lost = lost_in_sigmas(
            plans[nfe],
            shared=bool((plans[nfe].tau == plans[nfe].tau[:1]).all()),
            analytic_first=sampler.analytic_first,
        )
        cells = [nfe, record.get("method", "not recorded"), sampler.solver, result]
        cells.append(", ".join(lost) or "nothing")
        rows.append("| " + " | ".join(map(str, cells)) + " |")
    weights = next(iter(configs.values())).get("provenance", {}).get("weights", "not recorded")
    first = next(iter(samplers))
    note = licence or "none was given; ask the author"
    lines = [
        "---",
        *head,
        "---",
        "",
        f"# Few-step samplers for {model}",
        "",
        f"Learned plans of [INDIS](https://arxiv.org/abs/2603.17671) for `{base_model or model}`"
        f" (weights {weights}). They hold no weights of the model.",
        "",
        "| evaluations | method | solver | validation loss | what a list of sigmas drops |",
        "|--:|---|---|--:|---|",
        *rows,
        "",
        "The loss is the one recorded at the fit, on its own held-out part; it is no FID. Rows of "
        "different methods are comparable only if they name the same loss.",
        "",
        "![Noise levels of the plans](plan.png)",
        "",
        "## Use",
        "",
        "```python",
        "from indis import hub",
        "",
        f'sampler = hub.from_pretrained("user/repo", nfe={first}, revision="COMMIT")',
        "```",
        "",
        "## Licence",
        "",
        f"Samplers: {note}. The model has a licence of its own, which applies to what it makes.",
        "",
    ]
    return "\n".join(lines)


def _plot(plans: Mapping[int, Discretization], denoiser: Denoiser, path: Path) -> None:
    """Draw the noise levels of plans, a panel a number of evaluations."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.2 * len(plans) + 0.6, 3.0), layout="constrained")
    for axis, (nfe, plan) in zip(
        figure.subplots(1, len(plans), squeeze=False)[0], plans.items(), strict=True
    ):
        levels = sigmas(denoiser.schedule, plan)
        for row in levels.tolist():
            axis.plot(row, marker="o", markersize=3, linewidth=1, alpha=0.7)
        if denoiser.schedule.domain == "log_snr":
            axis.set_yscale("log" if float(levels.min()) > 0 else "symlog")
        axis.set_title(f"{nfe} evaluations, {len(levels)} plan{'s' * (len(levels) > 1)}")
        axis.set_xlabel("node")
        axis.set_xticks(range(levels.shape[1]))
    figure.supylabel("sigma")
    figure.savefig(path, dpi=110, format="png")

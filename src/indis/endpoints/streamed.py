"""Endpoints that stay on disk until their rows are used."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from indis.denoise import Condition
from indis.endpoints.memory import Endpoints, noise_from_seeds
from indis.storage import section


class StreamedEndpoints(Endpoints):
    """Rows of end points in shards. Only their seeds are in memory.

    Indexing returns such rows again; noise, target and condition are read at each use.

    Args:
        files: The shards.
        places: Shard and row of each end point, ``(count, 2)``.
        seeds: ``(count,)``, int64.
    """

    files: tuple[Path, ...]
    places: Tensor

    def __init__(self, files: tuple[Path, ...], places: Tensor, seeds: Tensor) -> None:
        object.__setattr__(self, "files", files)
        object.__setattr__(self, "places", places)
        object.__setattr__(self, "seeds", seeds)

    @classmethod
    def of(cls, files: Iterable[Path]) -> StreamedEndpoints:
        """Return the rows of all shards, in their order."""
        known, places, seeds = tuple(files), [], []
        for number, path in enumerate(known):
            with safe_open(path, framework="pt") as file:
                seeds.append(file.get_tensor("seeds"))
            rows = torch.arange(len(seeds[-1]))
            places.append(torch.stack([torch.full_like(rows, number), rows], dim=1))
        return cls(known, torch.cat(places), torch.cat(seeds))

    def __getitem__(self, index: Tensor | slice) -> StreamedEndpoints:
        return StreamedEndpoints(self.files, self.places[index], self.seeds[index])

    @property
    def noise(self) -> Tensor:
        """Unit noise ``(count, *shape)``, drawn from the seeds."""
        return noise_from_seeds(self.seeds.tolist(), tuple(self[:1].target.shape[1:]))

    @property
    def target(self) -> Tensor:
        """The teacher's end points ``(count, *shape)``."""
        return self._read("target")["target"]

    @property
    def condition(self) -> Condition:
        """The condition of each seed."""
        tensors = self._read("input.", "features")
        return Condition(section(tensors, "input."), tensors.get("features"))

    def to(self, device: torch.device | str) -> Endpoints:
        """Return these rows in memory, on a device."""
        whole = Endpoints(self.seeds, self.noise, self.target, self.condition)
        return whole.to(device)

    def _read(self, *starts: str) -> dict[str, Tensor]:
        """The tensors whose names start so, with a row for each end point."""
        places = self.places.tolist()
        opened = {n: safe_open(self.files[n], framework="pt") for n, _ in places}
        known = next(iter(opened.values())).keys()
        names = [name for name in known if name.startswith(starts)]
        return {
            name: torch.cat([opened[n].get_slice(name)[row : row + 1] for n, row in places])
            for name in names
        }

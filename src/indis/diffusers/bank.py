"""Prompts as the network reads them: each is encoded once and stored once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from torch import Tensor

from indis.storage import digest, load_tensors, save_tensors

Entry = dict[str, Tensor]
KEPT = 256  # entries in memory


class Bank:
    """The encoded prompts of one pipeline and call.

    Args:
        prompts: The prompts.
        encode: Returns the tensors of a prompt.
        folder: Where they are stored, one file a prompt. None: all are kept in memory.
        identity: A text that changes with the encoders or with how they are called.
    """

    def __init__(
        self,
        prompts: Sequence[str],
        encode: Callable[[str], Entry],
        folder: Path | None = None,
        identity: str = "",
    ) -> None:
        self.prompts, self.encode = tuple(prompts), encode
        self.folder, self.identity = folder, identity
        self._kept: dict[int, Entry] = {}

    def __getitem__(self, index: int) -> Entry:
        """Return the tensors of a prompt, on the CPU."""
        if index not in self._kept:
            if self.folder is not None and len(self._kept) >= KEPT:
                self._kept.pop(next(iter(self._kept)))
            self._kept[index] = self._found(self.prompts[index])
        return self._kept[index]

    def _found(self, prompt: str) -> Entry:
        if self.folder is None:
            return self.encode(prompt)
        path = self.folder / f"{digest([self.identity, prompt])}.safetensors"
        if not path.exists():
            save_tensors(path, self.encode(prompt), {"prompt": prompt})
        return load_tensors(path)[0]

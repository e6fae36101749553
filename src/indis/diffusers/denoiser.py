"""A pipeline's network as a denoiser, for teachers, fits and our own loop."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from indis.denoise import UNCONDITIONAL, Condition
from indis.diffusers.bank import Bank, Entry
from indis.diffusers.described import described, encoders, sample_of_weights
from indis.diffusers.families import Family, family_of
from indis.diffusers.process import process_of
from indis.diffusers.record import Record, network_of, record
from indis.storage import digest

NAME = "diffusers"


class PipelineDenoiser:
    """The frozen network of a pipeline, asked as the pipeline asks it, guidance included.

    A condition's input "prompt" ``(batch,)`` holds numbers of prompts, whose encodings a
    :class:`~indis.diffusers.bank.Bank` keeps. Samples whose prompts have encodings of different
    lengths are asked about one by one, and so are those of a pipeline that cannot ask at several
    times.

    Args:
        pipe: The pipeline.
        prompts: The prompts that seeds take in turn. An unconditional pipeline needs none.
        call: Arguments of the pipeline's call, such as guidance_scale, height and width.
        bank: A folder for encoded prompts; None to keep them in memory.
        latents: Whether losses compare latents, not pictures.
        offload: Whether parts of the pipeline visit a GPU only while they work.
        family: What INDIS must know about the pipeline; None for one that is known.

    Raises:
        ValueError: If the pipeline is not known, or takes no such argument.
    """

    name = NAME

    def __init__(
        self,
        pipe: Any,
        prompts: Sequence[str] = (),
        call: Mapping[str, Any] | None = None,
        *,
        bank: Path | None = None,
        latents: bool = False,
        offload: bool = False,
        family: Family | None = None,
    ) -> None:
        self.pipe, self.call = pipe, dict(call or {})
        self.family = family or family_of(pipe)
        self.latents, self.offload = latents, offload
        known = inspect.signature(type(pipe).__call__).parameters
        if unknown := sorted(set(self.call) - set(known)):
            raise ValueError(
                f"{type(pipe).__name__} must be called with what it takes, got {unknown[0]}"
            )
        default = known[self.family.scale].default if self.family.scale in known else 1.0
        self.scale = self.call.get(self.family.scale, default)
        for part in pipe.components.values():
            if isinstance(part, torch.nn.Module):
                part.eval().requires_grad_(False)
        pipe.set_progress_bar_config(disable=True)
        self.process = process_of(pipe.scheduler.config)
        self.schedule, self.native = self.process.schedule, self.process.native
        one, two = (record(pipe, self.family, [""] * n, self.call) for n in (1, 2))
        self._given, self._calls = one.arrangement, one.calls
        self._inputs = tuple(inspect.signature(type(network_of(pipe)).forward).parameters)[1]
        self._copies = tuple(len(given[self._inputs]) for given in one.calls)
        self._rows = _rows(one, two) - {
            f"{n}.{name}" for n in range(len(one.calls)) for name in (self._inputs, *TIMES)
        }
        packed = self.family.unpack(pipe, one.latents, self._given)
        self.shape = tuple(packed.shape[1:])
        self._alone = self.family.refusal(pipe, True) is not None
        self._weights = sample_of_weights(network_of(pipe))
        self._bank_folder = bank
        self.bank = self._bank(prompts)

    def prompted(self, prompts: Sequence[str]) -> PipelineDenoiser:
        """Return the same denoiser for other prompts, which are kept in memory."""
        made = object.__new__(PipelineDenoiser)
        made.__dict__.update(self.__dict__)
        made._bank_folder = None
        made.bank = made._bank(prompts)
        return made

    @property
    def fingerprint(self) -> str:
        """A hash of some of each weight, of the call and of the prompts."""
        call = {name: value for name, value in self.call.items() if value is not None}
        return digest([self._weights, call, list(self.bank.prompts)])

    @property
    def device(self) -> torch.device:
        """Where the network runs."""
        device: torch.device = self.pipe._execution_device
        return device

    def to(self, device: torch.device | str) -> Self:
        """Return itself, with the pipeline moved, or prepared to visit the device."""
        if self.offload and torch.device(device).type != "cpu":
            self.pipe.enable_model_cpu_offload(device=device)
        else:
            self.pipe.to(device)
        return self

    def describe(self) -> dict[str, Any]:
        """Return what artifacts record of the pipeline, as JSON."""
        prompts = self.bank.prompts
        return described(self.pipe) | {
            "call": self.call,
            "shape": list(self.shape),
            "pooled": self.family.pooled,
            "prompts": {"count": len(prompts), "digest": digest(list(prompts))},
        }

    def condition(self, seeds: list[int]) -> Condition:
        """Return the prompt of each seed: prompts in turn.

        Raises:
            ValueError: If there are none.
        """
        if self.family.late:
            return UNCONDITIONAL
        if not self.bank.prompts:
            raise ValueError("prompts must be given for a pipeline that reads them, got none")
        index = [seed % len(self.bank.prompts) for seed in seeds]
        features = [self.bank[i]["features"] for i in index]
        return Condition({"prompt": torch.tensor(index)}, torch.stack(features))

    def decode(self, x: Tensor) -> Tensor:
        """Return pictures or videos in [-1, 1], or ``x`` itself for losses in latents."""
        return x if self.latents else self.family.decode(self.pipe, x).to(x.dtype)

    def __call__(self, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """Return the network's answer ``(batch, *shape)``, guided as the pipeline does.

        Args:
            x: States ``(batch, *shape)``.
            t: Times ``(batch,)`` of the schedule.
            condition: With the input "prompt" ``(batch,)``.
        """
        entries: list[Entry] = [{}] * len(x)
        if "prompt" in condition.inputs:
            entries = [self.bank[i] for i in condition.inputs["prompt"].tolist()]
        sizes = [{name: value.shape for name, value in e.items()} for e in entries]
        if len(x) == 1 or not self._alone and all(size == sizes[0] for size in sizes):
            return self._asked(x, t, entries)
        rows = [slice(i, i + 1) for i in range(len(x))]
        return torch.cat([self._asked(x[row], t[row], entries[row]) for row in rows])

    def _asked(self, x: Tensor, t: Tensor, entries: Sequence[Entry]) -> Tensor:
        family, network = self.family, network_of(self.pipe)
        parts: list[Tensor] = []
        packed = family.pack(self.pipe, x, self._given).to(network.dtype)
        # The time path stays in float32, or float64, whatever the weights are.
        exact = torch.promote_types(network.dtype, torch.float32)
        times = family.network_time((t * self.process.unit).to(x.device, exact))
        for number, (given, copies) in enumerate(zip(self._calls, self._copies, strict=True)):
            filled = dict(_filled(given, str(number), self._rows, entries, x.device))
            filled[self._inputs] = family.shown(torch.cat([packed] * copies))
            filled[next(name for name in TIMES if name in given)] = times.repeat(copies)
            output = network(**filled | {"return_dict": False})[0]
            parts += family.answered(output).chunk(copies)
        answer = parts[0] if len(parts) == 1 else family.guided(parts, self.scale)
        answer = family.unpack(self.pipe, answer, self._given).to(x.dtype)
        return self.process.answer(answer, x, t)

    def _bank(self, prompts: Sequence[str]) -> Bank:
        # Whoever encodes does so once, and for the same call.
        identity = digest([encoders(self.pipe), self.call])
        return Bank(prompts, self._encoded, self._bank_folder, identity)

    def _encoded(self, prompt: str) -> Entry:
        made = record(self.pipe, self.family, [prompt], self.call)
        found = {} if made.features is None else {"features": made.features[0]}
        for name, value in _named(made):
            if name in self._rows:
                found |= dict(_tensors(name, value))
        # Shared storage cannot be written, and half of a prompt's is shared.
        return {name: value.detach().cpu().clone() for name, value in found.items()}


TIMES = ("timestep", "t")


def _leaves(value: Any, name: str) -> Iterator[tuple[str, Any]]:
    """Tensors, lists and other values inside dictionaries, by dotted names."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _leaves(inner, f"{name}.{key}")
    else:
        yield name, value


def _named(made: Record) -> Iterator[tuple[str, Any]]:
    for number, given in enumerate(made.calls):
        yield from _leaves(given, str(number))


def _rows(one: Record, two: Record) -> set[str]:
    """The names of what has a row for each sample: twice as many for two prompts."""
    sizes = [
        {name: len(v) for name, v in _named(made) if isinstance(v, Tensor | list) and sized(v)}
        for made in (one, two)
    ]
    return {name for name, size in sizes[0].items() if sizes[1].get(name) == 2 * size}


def sized(value: Tensor | list[Any]) -> bool:
    """Return whether a value has a first axis."""
    return isinstance(value, list) or value.ndim > 0


def _tensors(name: str, value: Any) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a row: itself, or those in it."""
    if isinstance(value, Tensor):
        yield name, value
    elif all(isinstance(one, Tensor) for one in value):
        yield from ((f"{name}#{i}", one) for i, one in enumerate(value))


def _filled(
    value: Any, name: str, rows: set[str], entries: Sequence[Entry], device: torch.device
) -> Any:
    """Return arguments with the rows of a batch: all of the first copy, then of the second."""
    if isinstance(value, Mapping):
        return {
            key: _filled(inner, f"{name}.{key}", rows, entries, device)
            for key, inner in value.items()
        }
    if isinstance(value, Tensor) and name in rows:
        each = [entry[name].to(device) for entry in entries]
        return torch.stack(each, dim=1).flatten(0, 1)
    if isinstance(value, list) and name in rows:
        copies = [
            [entry.get(f"{name}#{i}", one) for entry in entries] for i, one in enumerate(value)
        ]
        flat = [one for copy in copies for one in copy]
        return [one.to(device) if isinstance(one, Tensor) else one for one in flat]
    return value.to(device) if isinstance(value, Tensor) else value

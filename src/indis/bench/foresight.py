"""How much of what a sample wants of a plan can a policy foresee, and from what? Asked before any
policy is fitted.

At a tuned global plan the gradients of all samples sum to nothing, but each sample's own gradient
says where *its* plan should move. A per-instance policy can gain only from the part of these
gradients that its input tells. So a network is taught to predict them from each thing that a policy
may see, and judged on other samples:

    =============  ====================================================================
    view           who sees it
    =============  ====================================================================
    condition      any policy with a condition
    noise          the paper's phi(x_T, c), before the first evaluation
    answer k       a closed loop at node k: the state and the denoised sample there
                   (node 0 has none with AFS)
    =============  ====================================================================

The share of variance explained (R squared, averaged over the logits that act) is a bound in
practice, not in principle: it is what this network learns from this many samples. All views include
the condition.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from indis.checks import require_least
from indis.denoise import Condition, Denoiser, to_device_of
from indis.endpoints import Endpoints
from indis.losses import Loss
from indis.numerics import seeded
from indis.policies.closed import observation
from indis.policies.encoders import Encoder
from indis.recipe import descend
from indis.sampler import Sampler
from indis.sensitivity import per_sample_gradients

BATCH = 100
# In typical deviations. Gradients are heavy-tailed: without it a few samples would decide all.
OUTLIER = 5.0


@dataclass(frozen=True)
class SightConfig:
    """How the predictors are taught; the last tenths of the endpoints choose the epoch and judge.

    Raises:
        ValueError: for a number outside its range.
    """

    epochs: int = 10
    """Number of passes over the endpoints."""
    batch: int = 128
    """Number of endpoints in an iteration."""
    lr: float = 2e-3
    """Learning rate."""
    decay: float = 1e-2
    """Weight decay."""
    width: int = 128
    """Width of the hidden layers."""
    depth: int = 2
    """Number of hidden layers."""
    seed: int = 0
    """Seed of the initial weights and the batches."""

    def __post_init__(self) -> None:
        require_least(self, epochs=1, batch=1, width=1, depth=1, seed=0)
        if not (self.lr > 0 and self.decay >= 0):
            raise ValueError(
                f"lr must be positive and decay at least 0, got {self.lr} and {self.decay}"
            )


@dataclass(frozen=True)
class Wishes:
    """What was measured: gradients ``(count, logits)`` of those that act, and what could be seen,
    by view.
    """

    gradients: Tensor
    views: dict[str, Tensor]
    features: Tensor | None

    def __len__(self) -> int:
        return len(self.gradients)


def observe(sampler: Sampler, denoiser: Denoiser, data: Endpoints, loss: Loss) -> Iterator[Wishes]:
    """Measure the wishes of consecutive batches of ``BATCH`` samples where the denoiser is; the CPU
    keeps them.

    Raises:
        ValueError: if the solver makes more calls in some steps than in others.
    """
    sampler, calls = to_device_of(sampler, denoiser), _calls_at_nodes(sampler)
    for start in range(0, len(data), BATCH):
        part = data[start : start + BATCH]
        watched = _Watched(
            denoiser
        )  # each sample's own copy of the plan takes the way of the shared one
        gradients = per_sample_gradients(sampler, watched, part, loss).flatten(1).cpu()
        answers = {f"answer {k}": watched.seen[call] for k, call in calls.items()}
        yield Wishes(gradients, {"noise": part.noise} | answers, part.condition.features)


def _calls_at_nodes(sampler: Sampler) -> dict[int, int]:
    """Which network call is made at each node: a trial (Heun) is one between two nodes, an analytic
    step is none.
    """
    steps, name = sampler.policy.steps, type(sampler.solver).__name__
    each, rest = divmod(calls := sampler.solver.nfe(steps), steps)
    if rest:
        raise ValueError(
            f"solver must make as many calls in every step, got {name} with {calls} for {steps} "
            "steps"
        )
    places = {k: each * k - sampler.analytic_first for k in range(steps)}
    return {k: place for k, place in places.items() if place >= 0}


def gathered(parts: list[Wishes]) -> Wishes:
    """One from several; logits without any effect are left out.

    Raises:
        ValueError: if no logit has an effect.
    """
    gradients = torch.cat([part.gradients for part in parts])
    acting = gradients.abs().amax(0) > 0
    if not acting.any():
        raise ValueError("plan must have a logit that acts, got one of which none does")
    views = {name: torch.cat([part.views[name] for part in parts]) for name in parts[0].views}
    known = [part.features for part in parts if part.features is not None]
    return Wishes(gradients[:, acting], views, torch.cat(known) if known else None)


def shares(wishes: Wishes, config: SightConfig) -> Iterator[dict[str, Any]]:
    """A row for each view: the share of the gradients' variance that it explains on samples kept
    apart.

    Raises:
        ValueError: if there are too few samples to keep some apart.
    """
    if len(wishes) < 20:
        raise ValueError(f"count must be at least 20, got {len(wishes)}")
    target = _standardised(wishes.gradients)
    views = ({} if wishes.features is None else {"condition": wishes.features}) | wishes.views
    for name, view in views.items():
        explained = _Lesson(view.float(), wishes.features, target, config).explained()
        yield {
            "view": name,
            "explained": explained,
            "samples": len(wishes),
            "logits": target.shape[1],
        }


class _Watched:
    """A denoiser whose questions and answers are kept as a closed loop sees them."""

    def __init__(self, denoiser: Denoiser) -> None:
        self.denoiser, self.seen = denoiser, list[Tensor]()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.denoiser, name)

    def __call__(self, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        answer = self.denoiser(x, t, condition)
        self.seen.append(
            observation(x, answer, t, self.denoiser.schedule, self.denoiser.native)
            .detach()
            .float()
            .cpu()
        )
        return answer


class _Predictor(nn.Module):
    """Gradients from a view and the condition."""

    def __init__(
        self, shape: tuple[int, ...], condition: int, logits: int, config: SightConfig
    ) -> None:
        super().__init__()
        width = config.width
        self.encoder = Encoder(shape, condition, width, config.depth)
        self.head = nn.Linear(width, logits)

    def forward(self, view: Tensor, features: Tensor | None) -> Tensor:
        """``(batch, logits)``."""
        told: Tensor = self.head(self.encoder(view, features))
        return told


class _Lesson:
    """One predictor, taught on eight tenths of the samples; one tenth chooses the epoch, and one
    judges.
    """

    def __init__(
        self, view: Tensor, features: Tensor | None, target: Tensor, config: SightConfig
    ) -> None:
        self.view, self.features, self.target, self.config = view, features, target, config
        count = len(target)
        self.train, self.choose, self.judge = torch.arange(count).tensor_split(
            [count * 8 // 10, count * 9 // 10]
        )
        with seeded(config.seed):
            condition = 0 if features is None else features.shape[1]
            self.net = _Predictor(tuple(view.shape[1:]), condition, target.shape[1], config)
        self.optimizer = torch.optim.AdamW(
            self.net.parameters(), lr=config.lr, weight_decay=config.decay
        )

    def explained(self) -> float:
        """Teach, and judge the best epoch."""
        best, share, config = -math.inf, 0.0, self.config
        generator = torch.Generator().manual_seed(config.seed)
        parts = [
            part
            for _ in range(config.epochs)
            for part in self.train[torch.randperm(len(self.train), generator=generator)].split(
                config.batch
            )
        ]

        def objective(step: int) -> Tensor:
            return F.huber_loss(self._predict(parts[step]), self.target[parts[step]])

        an_epoch = len(parts) // config.epochs
        for step, _ in descend(self.optimizer, objective, iterations=len(parts), lr=config.lr):
            if step % an_epoch == 0 and (chosen := self._share(self.choose)) > best:
                best, share = chosen, self._share(self.judge)
        return share

    def _predict(self, part: Tensor) -> Tensor:
        return self.net(self.view[part], None if self.features is None else self.features[part])

    @torch.no_grad()
    def _share(self, index: Tensor) -> float:
        target = self.target[index]
        left = (
            (target - torch.cat([self._predict(part) for part in index.split(500)]))
            .square()
            .mean(0)
        )
        whole = (target - self.target[self.train].mean(0)).square().mean(0)
        return (1 - left / whole).mean().item()


def _standardised(gradients: Tensor) -> Tensor:
    """Centre on the median, divide by the typical deviation and cut at ``OUTLIER``.

    An outlier moves neither the median nor that deviation.
    """
    around = gradients.double() - gradients.double().median(0).values
    typical = around.abs().quantile(0.68, dim=0).clamp_min(torch.finfo(gradients.dtype).tiny)
    return (around / typical).clamp(-OUTLIER, OUTLIER).float()

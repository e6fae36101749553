r"""Mixtures of Gaussians in the plane, and their exact posterior mean.

Of data :math:`\sum_k w_k N(\mu_k, \Sigma_k)` under :math:`x = \alpha x_0 + \sigma \epsilon`, the
component k has, in the eigenbasis :math:`(q_i, l_i)` of its covariance, the residual, variance and
score

.. math:: y_i = q_i \cdot (x - \alpha \mu_k), \quad
          d_i = \alpha^2 l_i + \sigma^2, \quad s_i = y_i / d_i,

and the posterior mean, with no division by :math:`\alpha`, is

.. math:: D = \sum_k r_k m_k, \quad m_k = \mu_k + \alpha \sum_i q_i l_i s_i, \quad
          \log r_k = \log w_k - \tfrac12 \sum_i (y_i s_i + \log d_i) + \text{const}.

Its derivatives follow from those of the two factors,
:math:`\partial D = \sum_k r_k \partial m_k + r_k (m_k - D) \partial \log r_k`, where

.. math:: \partial_x \log r_k = -\sum_i q_i s_i, \quad
          \partial_\sigma \log r_k = \sigma \sum_i (s_i^2 - 1/d_i), \quad
          \partial_\alpha \log r_k = \sum_i s_i (q_i \cdot \mu_k) + \alpha l_i (s_i^2 - 1/d_i),

          \partial_x s_i = q_i / d_i, \quad \partial_\sigma s_i = -2 \sigma s_i / d_i, \quad
          \partial_\alpha s_i = -(q_i \cdot \mu_k + 2 \alpha l_i s_i) / d_i.

(The first is :math:`\partial_x D = \alpha \sigma^{-2} \mathrm{Cov}(x_0 | x)`, without its
cancellation.)

Components may come in branches of eight that share weight and covariance and lie evenly on a
segment, :math:`\mu_k = c + \tau_k v`. So :math:`s_i` and :math:`m_k` are linear in :math:`\tau`,
:math:`\log r_k` is quadratic, and all of the above needs just the moments
:math:`R_n = \sum_k r_k \tau_k^n` of each branch (n < 2 for the mean, n < 4 with derivatives): only
the exponential and two thin matrix products ever see single components. Other mixtures are taken as
branches of length one. Written plainly, with autograd over the components, the mean takes five
times as long.
"""

from __future__ import annotations

import math
import threading
from dataclasses import dataclass
from functools import cached_property
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from indis.numerics import TIME_DTYPE

BRANCH = 8  # components of a branch

# Points per chunk: with 1016 float32 components the largest temporary is two megabytes, the L2 of
# two cores.
CHUNK = 512


@dataclass(frozen=True, eq=False)
class Mixture:
    """A mixture of K Gaussians in the plane.

    Args:
        weights: ``(K,)``, of sum one.
        means: ``(K, 2)``.
        covariances: ``(K, 2, 2)``.
    """

    weights: Tensor
    means: Tensor
    covariances: Tensor

    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        """Return independent points ``(count, 2)``, in the mixture's dtype."""
        k = torch.multinomial(self.weights, count, replacement=True, generator=generator)
        noise = torch.randn(count, 2, generator=generator, dtype=self.means.dtype)
        return self.means[k] + torch.einsum(
            "bij,bj->bi", torch.linalg.cholesky(self.covariances)[k], noise
        )

    def log_density(self, x: Tensor) -> Tensor:
        """Return the log density ``(batch,)`` at points ``(batch, 2)``, differentiable."""
        precision = torch.linalg.inv(self.covariances)
        log_peak = self.weights.log() - torch.logdet(2 * math.pi * self.covariances) / 2
        offset = x[:, None] - self.means
        distance = torch.einsum("bki,kij,bkj->bk", offset, precision, offset)
        return torch.logsumexp(log_peak - distance / 2, dim=1)

    @cached_property
    def branch_length(self) -> int:
        """8 if components come in branches, else 1.

        The components of a branch have one weight, one covariance and evenly spaced means.
        """
        if len(self.weights) % BRANCH:
            return 1
        weights, means, covariances = (v.unflatten(0, (-1, BRANCH)) for v in self._parts)
        same = all(torch.equal(v, v[:, :1].expand_as(v)) for v in (weights, covariances))
        return BRANCH if same and bool(means.diff(n=2, dim=1).abs().max() < 1e-12) else 1

    @property
    def _parts(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.weights, self.means, self.covariances


_Line = tuple[Tensor, Tensor]


def posterior_mean(x: Tensor, alpha: Tensor, sigma: Tensor, mixture: Mixture) -> Tensor:
    """Return the posterior mean E[x_0 | x] for x = alpha x_0 + sigma eps.

    It is exact, and differentiable once in x, alpha and sigma. Far from the data at small sigma the
    weights are sharper than float32 resolves: the answer is finite, but rounding decides which of
    several almost equally distant components wins.

    Args:
        x: points ``(batch, 2)``.
        alpha: factors of the data ``(batch,)``; zero and negative numbers are allowed.
        sigma: factors of the noise ``(batch,)``, positive.
        mixture: the distribution of x_0.

    Returns:
        Means ``(batch, 2)``, in the dtype of ``x``.
    """
    alpha, sigma = (v.to(x.dtype).expand(len(x)) for v in (alpha, sigma))
    wanted = torch.is_grad_enabled() and any(v.requires_grad for v in (x, alpha, sigma))
    return _PosteriorMean.apply(x, alpha, sigma, _kernel(mixture, x), wanted)


class _PosteriorMean(torch.autograd.Function):
    """Keeps eight derivatives per point, not the graph over the components."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, alpha: Tensor, sigma: Tensor, kernel: _Kernel, wanted: bool
    ) -> Tensor:
        points = torch.cat([x.T, alpha[None], sigma[None]])
        mean, jacobian = x.new_empty(2, len(x)), x.new_empty(2, 4, len(x) if wanted else 0)
        for start in range(0, len(x), CHUNK):
            part = slice(start, start + CHUNK)
            mean[:, part] = kernel(points[:, part], jacobian[:, :, part] if wanted else None)
        ctx.save_for_backward(jacobian)
        return mean.T.contiguous()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (jacobian,) = ctx.saved_tensors
        pulled = torch.einsum("bc,cvb->vb", gradient, jacobian)
        return pulled[:2].T, pulled[2], pulled[3], None, None


class _Kernel:
    """A mixture's constants in one dtype, and the module's formulas on a chunk of points.

    The points are the *last* axis, so that every sum is a matrix product or runs over contiguous
    rows. Axes: ``i`` eigendirection, ``c`` coordinate, ``g`` branch, ``n`` point; (i, g) is
    flattened where it is summed.
    """

    def __init__(self, mixture: Mixture, like: Tensor) -> None:
        weights, means, covariances = (
            v.unflatten(0, (-1, mixture.branch_length)) for v in mixture._parts
        )
        values, vectors = torch.linalg.eigh(covariances[:, 0])
        values, vectors = values.T[..., None], vectors.permute(2, 0, 1)  # (i, g, 1), (i, g, c)
        centre, slope = means.mean(1), (means[:, -1] - means[:, 0]) / 2
        along = [(vectors * v).sum(-1, keepdim=True) for v in (centre, slope)]
        tau = torch.linspace(-1, 1, mixture.branch_length, dtype=TIME_DTYPE)

        def constant(value: Tensor) -> Tensor:
            return value.to(like).contiguous()

        self.branches, self.length = len(centre), len(tau)
        self.values, self.centre, self.slope = constant(values), *map(constant, along)
        self.vectors = constant(vectors.permute(2, 0, 1)[..., None])  # (c, i, g, 1)
        # Rows (i, g): y at tau = 0 from (x, alpha), its slope from alpha, and d from (alpha^2,
        # sigma^2).
        self.residual = constant(torch.cat([vectors, -along[0]], -1).flatten(0, 1))
        self.residual_slope = constant(-along[1].flatten(0, 1))
        self.variance = constant(torch.cat([values, torch.ones_like(values)], -1).flatten(0, 1))
        self.log_weight = constant(2 * weights[:, :1].log())
        # Base-2 logits, from the coefficients of -2 log r: exp is slower, far slower near
        # underflow.
        self.logit = constant(-0.5 / math.log(2) * torch.stack([tau**0, 2 * tau, tau**2], 1))
        self.powers = constant(torch.stack([tau**n for n in range(4)]))
        self.line = constant(torch.cat([centre, slope]).T)
        self.pull = constant((values * vectors).flatten(0, 1).T)
        self.line_columns, self.pull_columns = self._columns(self.line), self._columns(self.pull)
        self.tilt = constant(self._tilt())
        self.scratch = _Scratch(self.powers)

    def _columns(self, rows: Tensor) -> Tensor:
        """``(c, 2 g)`` as ``(2, c, g, 1)``, to be multiplied with rows ``(g, n)``."""
        return rows.unflatten(1, (2, -1)).transpose(0, 1)[..., None].contiguous()

    def _tilt(self) -> Tensor:
        """``(5, 3 i g)``, from covariances of m with s, tau s, s^2 - 1/d to r (m - D) dlog r."""
        q, zero = self.vectors.flatten(1), torch.zeros_like(self.values.flatten())
        centre, slope, values = (v.flatten() for v in (self.centre, self.slope, self.values))
        rows = [(-q[0], zero, zero), (-q[1], zero, zero), (centre, slope, zero)]
        rows += [(zero, zero, values), (zero, zero, zero + 1)]
        return torch.stack([torch.cat(row) for row in rows])

    def __call__(self, points: Tensor, jacobian: Tensor | None) -> Tensor:
        """The mean ``(2, n)`` at (x, alpha, sigma) ``(4, n)``; fills a jacobian ``(2, 4, n)``."""
        new = self.scratch.reset()
        inverse, score, moments = self._weigh(points, 2 if jacobian is None else 4, new)
        pulls = torch.mul(score[0], moments[0], out=new(score[0].shape)).addcmul_(
            score[1], moments[1]
        )
        mean = torch.mm(self.line, moments[:2].flatten(0, 1))
        mean.addcmul_(torch.mm(self.pull, pulls.flatten(0, 1)), points[2])
        if jacobian is not None:
            self._tilted(points, mean, inverse, score, moments, jacobian, new)
            self._direct(points, inverse, pulls, moments, jacobian, new)
        return mean

    def _weigh(self, points: Tensor, order: int, new: _Scratch) -> tuple[Tensor, _Line, Tensor]:
        """1/d ``(i, g, n)``, both coefficients of s in tau (same), and R ``(order, g, n)``."""
        shape = 2, self.branches, points.shape[1]
        flat = 2 * self.branches, points.shape[1]
        inverse = (
            torch.mm(self.variance, points[2:].square(), out=new(flat)).reciprocal_().view(shape)
        )
        offset = torch.mm(self.residual, points[:3], out=new(flat)).view(shape)
        slope = torch.mm(self.residual_slope, points[2:3], out=new(flat)).view(shape)
        score = (
            torch.mul(inverse, offset, out=new(shape)),
            torch.mul(inverse, slope, out=new(shape)),
        )

        quadratic = new((3, *shape[1:]))
        for out, y, s in zip(
            quadratic, (offset, offset, slope), (score[0], score[1], score[1]), strict=True
        ):
            _dot(y, s, out)
        log_inverse = torch.mul(inverse[0], inverse[1], out=new(shape[1:])).log_()
        quadratic[0].sub_(log_inverse).sub_(self.log_weight)

        weights = torch.mm(
            self.logit, quadratic.flatten(1), out=new((self.length, quadratic[0].numel()))
        )
        by_point = weights.view(-1, shape[2])
        by_point.sub_(by_point.amax(0)).exp2_()
        moments = torch.mm(self.powers[:order], weights, out=new((order, weights.shape[1])))
        moments = moments.view(order, *shape[1:])
        return inverse, score, moments.div_(moments[0].sum(0))

    def _tilted(
        self,
        points: Tensor,
        mean: Tensor,
        inverse: Tensor,
        score: _Line,
        moments: Tensor,
        jacobian: Tensor,
        new: _Scratch,
    ) -> None:
        """Write the part of the derivatives that moves the weights, sum r (m - D) d log r."""
        alpha, sigma = points[2:]
        shape = 2, *moments.shape[1:]  # (c, g, n)
        excess = [_dot(self.pull_columns, s[:, None], new(shape)).mul_(alpha) for s in score]
        for part, column in zip(excess, self.line_columns, strict=True):
            part.add_(column)
        excess[0].sub_(mean[:, None])
        # E[tau^n (m - D)], shaped (n, c, 1, g, n) to meet the eigendirections.
        centred = torch.mul(moments[:3, None], excess[0], out=new((3, *shape)))
        centred = centred.addcmul_(moments[1:, None], excess[1])[:, :, None]
        covariances = new((2, 3, *shape))  # (c, which, i, g, n)
        plain, with_tau, squared = covariances.unbind(1)
        torch.mul(score[0], centred[0], out=plain).addcmul_(score[1], centred[1])
        torch.mul(score[0], centred[1], out=with_tau).addcmul_(score[1], centred[2])
        torch.mul(score[0], plain, out=squared).addcmul_(score[1], with_tau)
        squared.addcmul_(inverse, centred[0], value=-1)
        for out, value in zip(jacobian, covariances, strict=True):
            parts = torch.mm(self.tilt, value.flatten(0, 2))
            out[:3] = parts[:3]
            out[2].addcmul_(alpha, parts[3])
            torch.mul(sigma, parts[4], out=out[3])

    def _direct(
        self,
        points: Tensor,
        inverse: Tensor,
        pulls: Tensor,
        moments: Tensor,
        jacobian: Tensor,
        new: _Scratch,
    ) -> None:
        """Add the part of the derivatives that moves the component means, sum r dm."""
        alpha, sigma = points[2:]
        work = new(inverse.shape)

        def pulled(value: Tensor) -> Tensor:
            return torch.mm(self.pull, value.flatten(0, 1))

        mass = torch.mul(inverse, moments[0], out=new(inverse.shape))
        for coordinate, q in enumerate(self.vectors):
            jacobian[:, coordinate].addcmul_(alpha, pulled(torch.mul(mass, q, out=work)))
        mass.mul_(self.centre).addcmul_(torch.mul(inverse, moments[1], out=work), self.slope)
        jacobian[:, 2].add_(pulled(pulls)).addcmul_(alpha, pulled(mass), value=-1)
        pulls.mul_(inverse)
        jacobian[:, 3].addcmul_(alpha * sigma, pulled(pulls), value=-2)
        jacobian[:, 2].addcmul_(alpha.square(), pulled(pulls.mul_(self.values)), value=-2)


_KERNELS: WeakKeyDictionary[Mixture, dict[tuple[torch.dtype, torch.device], _Kernel]] = (
    WeakKeyDictionary()
)


def _kernel(mixture: Mixture, like: Tensor) -> _Kernel:
    """The mixture's kernel in the dtype and on the device of ``like``, built once."""
    # Kept outside the mixture, which so remains plain data that can be copied and pickled.
    kernels = _KERNELS.setdefault(mixture, {})
    key = like.dtype, like.device
    if key not in kernels:
        kernels[key] = _Kernel(mixture, like)
    return kernels[key]


def _dot(left: Tensor, right: Tensor, out: Tensor) -> Tensor:
    """Sum of products over a first axis of two, into ``out``."""
    return torch.mul(left[0], right[0], out=out).addcmul_(left[1], right[1])


class _Scratch(threading.local):
    """Memory for a chunk's temporaries, one block per thread.

    Fresh allocations of this size come page by page from the system, which costs more than using
    them.
    """

    def __init__(self, like: Tensor) -> None:
        self.block = like.new_empty(0)
        self.used = 0

    def reset(self) -> _Scratch:
        """Forget all tensors handed out."""
        self.used = 0
        return self

    def __call__(self, shape: tuple[int, ...]) -> Tensor:
        """An uninitialised tensor, valid until the next :meth:`reset`."""
        start, self.used = self.used, self.used + math.prod(shape)
        if self.used > len(self.block):
            # Tensors handed out before stay alive in the old block. The new one must serve both
            # modes of autograd.
            with torch.inference_mode(False):
                self.block = torch.empty(
                    2 * self.used, dtype=self.block.dtype, device=self.block.device
                )
        return self.block[start : self.used].view(shape)

"""Distances between two clouds of points in the plane: a histogram divergence and a transport
distance.

Exact transport between two clouds of 20 000 points is out of reach, and a subset throws most of
both clouds away. Here every point counts: the plane is cut into square cells, the points of one
cloud in one cell become one atom at their own mean, and the transport between the two small
weighted sets is exact. Means are kept, so a pure shift costs its length.
"""

from __future__ import annotations

from bisect import bisect_right

import torch
from torch import Tensor

try:
    import ot
except ImportError as error:
    raise ImportError(
        "indis.bench.toy_metrics needs POT, install it with: pip install indis-diffusion[metrics]"
    ) from error

Bounds = tuple[float, float, float, float]  # left, right, bottom, top

# Cells along the longer side of the reference's bounding box: 8 to 1024 in steps of a fourth root
# of two.
GRIDS = [round(8 * 2 ** (k / 4)) for k in range(29)]


def histogram_kl(
    samples: Tensor,
    reference: Tensor,
    bins: int = 48,
    bounds: Bounds | None = None,
    smoothing: float = 1e-2,
) -> float:
    """KL(reference || samples) in nats of two clouds ``(count, 2)``, on a grid of ``bins`` x
    ``bins`` cells.

    The histogram spans ``bounds``, by default the bounding box of the reference; points outside
    count in the border cells, so a cloud that left the picture is not forgiven. Each histogram is
    mixed with ``smoothing`` parts of the uniform one (additive smoothing that does not depend on
    the counts), which makes the value finite, at most about ln(bins^2 / smoothing), and exactly
    zero for equal histograms. Two independent clouds of n points that occupy k cells stay near k /
    n apart.

    Raises:
        ValueError: if a cloud is empty, misshapen or not finite, the bounds are empty, or smoothing
        is not in (0, 1].
    """
    if not 0 < smoothing <= 1:
        raise ValueError(f"smoothing is {smoothing}, a share above 0 and at most 1 is expected")
    _check(samples=samples, reference=reference)
    low, high = _corners(reference, bounds)
    p, q = (_histogram(cloud, low, high, bins) for cloud in (reference, samples))
    p, q = ((1 - smoothing) * h + smoothing / bins**2 for h in (p, q))
    return (p * (p / q).log()).sum().clamp(min=0).item()


def wasserstein1(samples: Tensor, reference: Tensor, cells: int = 1000) -> float:
    """The exact Euclidean 1-Wasserstein distance of two quantised clouds ``(count, 2)``, in their
    own unit.

    The grid is the finest one of :data:`GRIDS` on which the reference occupies at most ``cells``
    cells, so it is the same for every cloud compared with that reference; it goes on outside the
    reference's bounding box. A cloud moves by less than a cell's diagonal when it is quantised, the
    distance by far less, and never to below the distance between the clouds' means. The cost grows
    fast with the cells that the two clouds occupy: give clouds of about equal counts.

    Raises:
        ValueError: if a cloud is empty, misshapen or not finite, or the reference is a single
        point. RuntimeError: if the transport solver does not reach the optimum.
    """
    _check(samples=samples, reference=reference)
    samples, reference = samples.detach().double().cpu(), reference.detach().double().cpu()
    low, side = _grid(reference, cells)
    (a, weight_a), (b, weight_b) = (_quantise(cloud, low, side) for cloud in (samples, reference))
    # The default limit of POT stops short of the optimum for a few thousand atoms.
    cost, log = ot.emd2(weight_a, weight_b, _distances(a, b), numItermax=50_000_000, log=True)
    if log["warning"] is not None:
        raise RuntimeError(
            f"optimal transport between {len(a)} and {len(b)} atoms failed: {log['warning']}"
        )
    return float(cost)


def _distances(a: Tensor, b: Tensor) -> Tensor:
    # The default of cdist goes through a matrix product and leaves 1e-8 between equal points.
    return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")


def _grid(reference: Tensor, cells: int) -> tuple[Tensor, Tensor]:
    """Lower left corner ``(2,)`` and cell side of the finest grid with few enough occupied
    cells.
    """
    low, extent = reference.amin(0), (reference.amax(0) - reference.amin(0)).max()
    if extent == 0:
        raise ValueError(
            f"reference holds one point {low.tolist()}, points that differ are expected"
        )
    sides = [extent / across for across in GRIDS]
    # Occupied cells grow with refinement, so bisection finds the last grid that is coarse enough.
    fit = bisect_right(sides, cells, key=lambda side: len(_quantise(reference, low, side)[1]))
    return low, sides[max(fit - 1, 0)]


def _quantise(cloud: Tensor, low: Tensor, side: Tensor) -> tuple[Tensor, Tensor]:
    """Atoms ``(cells, 2)`` at the means of occupied cells, and weights ``(cells,)`` that sum to
    one.
    """
    cell = ((cloud - low) / side).floor()
    _, owner, counts = cell.unique(dim=0, return_inverse=True, return_counts=True)
    sums = torch.zeros(len(counts), 2, dtype=torch.float64).index_add_(0, owner, cloud)
    return sums / counts[:, None], counts.double() / len(cloud)


def _histogram(cloud: Tensor, low: Tensor, high: Tensor, bins: int) -> Tensor:
    """The fraction of the points in each cell, ``(bins * bins,)``."""
    cell = ((cloud.double().cpu() - low) / (high - low) * bins).floor().clamp(0, bins - 1).long()
    return torch.bincount(cell[:, 0] * bins + cell[:, 1], minlength=bins**2).double() / len(cloud)


def _corners(reference: Tensor, bounds: Bounds | None) -> tuple[Tensor, Tensor]:
    """The lower left and the upper right corner, each ``(2,)``."""
    if bounds is None:
        box = reference.double().cpu()
        low, high = box.amin(0), box.amax(0)
    else:
        low, high = torch.tensor(bounds, dtype=torch.float64).reshape(2, 2).T
    if not (high > low).all():
        raise ValueError(
            f"bounds run from {low.tolist()} to {high.tolist()}, a box with an area is expected"
        )
    return low, high


def _check(**clouds: Tensor) -> None:
    for name, cloud in clouds.items():
        if cloud.ndim != 2 or cloud.shape[1] != 2 or len(cloud) == 0:
            raise ValueError(
                f"{name} has shape {tuple(cloud.shape)}, (count, 2) with at least one point is "
                "expected"
            )
        if not torch.isfinite(cloud).all():
            raise ValueError(
                f"{name} holds values that are not finite, only finite points can be compared"
            )

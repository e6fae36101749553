"""Parity with end points that an independent public implementation computed once; see
shared/golden/README.md."""

import pytest
import torch

from indis import DEIS, EDM, IPNDM, Discretization, DPMSolverPP, Euler, Heun, UniPC, grids, solve
from problems import GoldenMixture

PROBLEM = GoldenMixture()
GRIDS = {"polynomial": grids.polynomial, "logsnr": grids.log_snr}
SOLVERS = {
    "euler": Euler(),
    "heun": Heun(),
    "ipndm2": IPNDM(2),
    "ipndm3": IPNDM(3),
    "ipndm4": IPNDM(4),
    "deis_tab3": DEIS(3),
    **{f"dpmpp{p}_{end}": DPMSolverPP(p, end == "lof") for p in (2, 3) for end in ("lof", "nolof")},
    **{
        f"unipc{p}_{b}_{end}": UniPC(p, b, end == "lof")
        for p in (2, 3)
        for b in ("bh1", "bh2")
        for end in ("lof", "nolof")
    },
}
ENDS = [
    key
    for key in PROBLEM.golden
    if key.endswith(("_3", "_5", "_8")) and not key.startswith("grid_")
]


def end(key: str) -> torch.Tensor:
    """The library's end point for a key such as ``ipndm3_afs_polynomial_5``."""
    name, grid, steps = key.rsplit("_", 2)
    plan = Discretization.plain(GRIDS[grid](PROBLEM.schedule, int(steps)))
    start = PROBLEM.schedule.t_max * PROBLEM.noise
    return solve(
        PROBLEM,
        start,
        plan,
        SOLVERS[name.removesuffix("_afs")],
        analytic_first=name.endswith("_afs"),
    )


def test_every_key_of_the_file_is_compared():
    described = {"mu", "w", "sd", "z"}
    assert set(ENDS) | {f"grid_{g}_{n}" for g in GRIDS for n in (3, 5, 8)} | described == set(
        PROBLEM.golden
    )
    assert {key.rsplit("_", 2)[0].removesuffix("_afs") for key in ENDS} == set(SOLVERS)


@pytest.mark.parametrize("steps", [3, 5, 8])
@pytest.mark.parametrize("grid", GRIDS)
def test_grids_are_the_reference_ones(grid, steps):
    expected = PROBLEM.golden[f"grid_{grid}_{steps}"]
    torch.testing.assert_close(GRIDS[grid](EDM(), steps)[0], expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("key", [key for key in ENDS if not key.startswith("deis")])
def test_end_points_are_the_reference_ones(key):
    torch.testing.assert_close(end(key), PROBLEM.golden[key], rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("key", [key for key in ENDS if key.startswith("deis")])
def test_deis_agrees_with_the_riemann_sums_of_the_reference(key):
    expected = PROBLEM.golden[key]
    torch.testing.assert_close(end(key), expected, rtol=0, atol=1e-2 * float(expected.abs().max()))


@pytest.mark.parametrize(
    "key", ["euler_polynomial_8", "dpmpp2_lof_logsnr_8", "unipc3_bh2_lof_logsnr_8"]
)
def test_single_precision_samples_stay_close_to_double_precision_ones(key):
    name, grid, steps = key.rsplit("_", 2)
    plan = Discretization.plain(GRIDS[grid](PROBLEM.schedule, int(steps)))
    x = solve(PROBLEM, 80 * PROBLEM.noise.float(), plan, SOLVERS[name])
    assert x.dtype == torch.float32
    torch.testing.assert_close(x.double(), PROBLEM.golden[key], rtol=0, atol=2e-3)

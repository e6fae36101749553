"""Solvers by name."""

import pytest

from indis import (
    DEIS,
    IPNDM,
    AdamsBashforth,
    DPMSolverPP,
    Euler,
    Heun,
    UniPC,
    solvers,
)


@pytest.mark.parametrize(
    ("spec", "solver"),
    [
        ("euler", Euler()),
        ("heun", Heun()),
        ("ipndm", IPNDM(3)),
        ("ipndm:4", IPNDM(4)),
        ("adams_bashforth:2", AdamsBashforth(2)),
        ("deis:2", DEIS(2)),
        ("deis:2:true", DEIS(2, lower_order_final=True)),
        ("adams_bashforth:4:true", AdamsBashforth(4, lower_order_final=True)),
        ("dpmpp:3:false", DPMSolverPP(3, False)),
        ("unipc:2:bh1:true", UniPC(2, "bh1", True)),
    ],
)
def test_names_mean_solvers(spec, solver):
    assert solvers.named(spec) == solver


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("ode45", "solver must be one of"),
        ("euler:2", "takes 0 parameters"),
        ("ipndm:five", "must be of type int"),
        ("ipndm:5", "order must be"),
        ("ipndm:3:true", "takes 1 parameters"),
        ("deis:3:low", "must be of type bool"),
        ("dpmpp:2:maybe", "must be of type bool"),
        ("unipc:2:bh3", "variant must be"),
    ],
)
def test_names_that_mean_nothing_are_refused(spec, message):
    with pytest.raises(ValueError, match=message):
        solvers.named(spec)

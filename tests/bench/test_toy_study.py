"""The toy study, small: each policy is judged, the oracle is one, and neither processes nor company
change a number."""

from dataclasses import replace

import pytest
import torch

from indis.bench.toy_study import FREEDOMS, ToyConfig, ToyStudy

SMALL = ToyConfig(
    priors=96,
    steps=(3, 4),
    global_iterations=30,
    global_batch=48,
    instance_iterations=30,
    instance_batch=48,
    probes=48,
    width=16,
    depth=2,
    reference=2000,
)


def ran(config, workers=1):
    study = ToyStudy(config)
    for _ in study.run(workers):
        pass
    return study


@pytest.fixture(scope="module")
def study():
    return ran(SMALL)


def numbers(study):
    return [
        {name: value for name, value in cell.items() if name != "fit_seconds"}
        for cell in study.results()["cells"]
    ]


def test_every_policy_is_judged_once_for_all_its_freedoms_numbers_of_steps_and_priors(study):
    expected = {("uniform", "tau", n, split) for n in (3, 4) for split in ("train", "heldout")}
    for freedoms in FREEDOMS:
        splits = {
            "global": ("train", "heldout"),
            "instance": ("train", "heldout"),
            "oracle": ("train",),
        }
        expected |= {
            (p, freedoms, n, split)
            for p, parts in splits.items()
            for n in (3, 4)
            for split in parts
        }
    cells = study.cells
    assert len(cells) == len(expected)
    assert {(c.policy, c.freedoms, c.steps, c.split) for c in cells} == expected
    assert all(c.nfe == c.steps and c.squared_distance > 0 and c.kl > c.kl_floor for c in cells)
    assert {name.split()[0] for name in study.scatter} == {
        "uniform",
        "global",
        "instance",
        "oracle",
    }


def test_the_oracle_is_never_worse_than_phi_and_more_freedom_lets_it_do_better(study):
    train = {
        (c.policy, c.freedoms, c.steps): c.squared_distance
        for c in study.cells
        if c.split == "train"
    }
    for n in (3, 4):
        for freedoms in FREEDOMS:
            assert train["oracle", freedoms, n] < train["instance", freedoms, n]
        assert (
            train["oracle", "tau+dtau+gamma", n]
            < train["oracle", "tau", n]
            < train["uniform", "tau", n]
        )
    errors = study.scatter
    name = "tau+dtau+gamma train"
    assert bool((errors[f"oracle {name}"] <= errors[f"instance {name}"] + 1e-7).all())


def test_processes_that_share_out_the_steps_change_no_number(study):
    assert numbers(ran(SMALL, workers=2)) == numbers(study)


def test_a_prior_s_own_plan_does_not_depend_on_how_many_others_there_are():
    """The mean over 20 000 priors has gradients as small as Adam's epsilon, which then slows all of
    them down."""
    found = {}
    config = replace(
        SMALL, steps=(8,), freedoms=("tau+dtau+gamma",), global_iterations=2, instance_iterations=2
    )
    for count in (50, 8000):
        study = ToyStudy(replace(config, priors=count))
        next(run := study.run())
        next(run)  # the teacher's end points are there
        sampler = study._instance("tau+dtau+gamma", 8)
        with torch.no_grad():  # the same start for both
            sampler.policy.logits.table.zero_()
            sampler.policy.logits.head.zero_()
            sampler.policy.logits.scale.fill_(1.0)
        few = study._oracle(sampler, "tau+dtau+gamma", 8).policy.logits.table[:50].detach()
        found[count] = few
    torch.testing.assert_close(found[50], found[8000], rtol=1e-3, atol=1e-3)


def test_quick_makes_small_what_was_not_set():
    quick = ToyConfig(tree_seed=5, steps=(4,), priors=100).quick()
    assert (quick.tree_seed, quick.steps, quick.priors) == (5, (4,), 100)
    assert (quick.global_iterations, quick.reference) == (200, 50_000)
    assert ToyConfig().quick().steps == (3, 5)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        (
            {"freedoms": ("tau", "w")},
            "freedoms must be among tau, tau\\+dtau, tau\\+dtau\\+gamma, got w",
        ),
        ({"steps": ()}, "steps must be at least 1"),
        ({"priors": 1}, "priors must be at least 2, got 1"),
    ],
)
def test_settings_that_make_no_study_are_refused(fields, words):
    with pytest.raises(ValueError, match=words):
        replace(SMALL, **fields)

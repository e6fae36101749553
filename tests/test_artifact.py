"""Artifacts give the same bits back, and damage is told in one sentence."""

import json
from dataclasses import dataclass

import pytest
import torch

from indis import (
    EDM,
    Bounds,
    DiscreteVP,
    Discretization,
    Euler,
    Fixed,
    LinearVP,
    Policy,
    RectifiedFlow,
    Sampler,
    ScaledLinearVP,
    TableVP,
    artifact,
    grids,
    noise_from_seeds,
    solvers,
)
from indis.storage import load_json
from learned import closed, per_sample, phi, shared
from small_cases import TinyClasses, contents, reseal, same_tensors, sentence, toy

SEEDS = list(range(6))
STEPS, ORDER = 4, 3
CASES = ["fixed", "fixed+weights", "global", "per sample", "instance", "instance+class", "closed"]


def learned(policy, seed=0):
    """A policy with parameters that are not zero, so that nothing is equal by accident."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in policy.parameters():
        parameter.data.copy_(torch.randn(parameter.shape, generator=generator) / 2)
    return policy


@dataclass(frozen=True)
class Own(EDM):
    """A schedule of a user's, which no name stands for."""


class OwnEuler(Euler):
    """A solver of a user's."""


@pytest.mark.parametrize("case", ["schedule", "solver"])
def test_what_could_not_be_read_again_is_not_written(tmp_path, case):
    schedule = Own() if case == "schedule" else EDM()
    policy = shared(grids.uniform(schedule, 2), schedule, Bounds.natural(schedule))
    sampler = Sampler(policy, OwnEuler() if case == "solver" else Euler())
    with pytest.raises(TypeError, match=f"{case} must be one of .* to be saved, got Own") as error:
        artifact.save(sampler, tmp_path / "a")
    sentence(error)
    assert not (tmp_path / "a").exists()


def build(case):
    """A sampler with weights for iPNDM-3, and the denoiser it is for."""
    denoiser = TinyClasses() if case == "instance+class" else toy()
    schedule, base = denoiser.schedule, grids.uniform(denoiser.schedule, STEPS)
    parts = (base, schedule, Bounds.natural(schedule, dtau=0.4, gamma=0.3, weights=0.2))
    reader = {"width": 8, "depth": 2, "order": ORDER}
    if case == "global":
        policy = learned(shared(*parts, ORDER))
    elif case == "per sample":
        policy = learned(per_sample(len(SEEDS), *parts, ORDER))
    elif case == "instance":
        policy = learned(phi(*parts, shape=(2,), **reader))
    elif case == "closed":
        looking = {"native": denoiser.native}
        policy = learned(closed(*parts, shape=(2,), **looking, **reader))
    elif case == "instance+class":
        policy = learned(phi(*parts, shape=(1, 4, 4), condition_dim=10, **reader))
    else:
        plan = learned(shared(*parts, ORDER))(torch.zeros(1, 2)).detach()
        weights = plan.weights if case == "fixed+weights" else None
        policy = Fixed(Discretization(plan.tau, plan.dtau, plan.gamma, weights))
    return Sampler(policy, solvers.named("ipndm:3"), analytic_first=case == "global"), denoiser


def draw(sampler, denoiser):
    with torch.no_grad():
        return sampler(denoiser, noise_from_seeds(SEEDS, denoiser.shape), denoiser.condition(SEEDS))


@pytest.fixture
def folder(tmp_path):
    artifact.save(build("instance")[0], tmp_path / "a", {"model": "toy"})
    return tmp_path / "a"


def edit(folder, change):
    config = load_json(folder / "config.json")
    change(config)
    reseal(folder / "config.json", config)


def unreadable(folder, kind=ValueError):
    with pytest.raises(kind) as error:
        artifact.load(folder)
    return sentence(error)


@pytest.mark.parametrize("case", CASES)
def test_a_saved_sampler_draws_the_same_bits(tmp_path, case):
    sampler, denoiser = build(case)
    plain = Sampler(
        Fixed(grids.uniform(denoiser.schedule, STEPS)), sampler.solver, sampler.analytic_first
    )
    artifact.save(sampler, tmp_path / "a")
    back = artifact.load(tmp_path / "a")
    assert torch.equal(draw(back, denoiser), draw(sampler, denoiser))
    assert (draw(sampler, denoiser) - draw(plain, denoiser)).abs().max() > 1e-2
    assert (back.nfe, back.policy.steps) == (sampler.nfe, STEPS)


@pytest.mark.parametrize("case", ["fixed", "instance"])
def test_saving_what_was_loaded_gives_the_same_files(tmp_path, case):
    artifact.save(build(case)[0], tmp_path / "a", {"seed": 1})
    artifact.save(artifact.load(tmp_path / "a"), tmp_path / "b", {"seed": 1})
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    assert list(contents(tmp_path / "a")) == ["config.json", "policy.safetensors"]


@pytest.mark.parametrize(
    "spec",
    [
        "euler",
        "heun",
        "ipndm:4",
        "adams_bashforth:2",
        "deis:3",
        "dpmpp:3:false",
        "unipc:2:bh1:false",
    ],
)
def test_every_solver_comes_back_with_its_parameters(tmp_path, spec):
    solver = solvers.named(spec)
    artifact.save(Sampler(Fixed(grids.uniform(EDM(), 3)), solver), tmp_path)
    assert artifact.load(tmp_path).solver == solver


@pytest.mark.parametrize(
    "schedule",
    [
        EDM(0.01, 50.0),
        RectifiedFlow(0.1, 0.9),
        LinearVP(beta_max=10),
        ScaledLinearVP(1.0, 9.0),
        DiscreteVP(steps=100, t_max=99.0),
        TableVP((0.99, 0.5, 0.1, 0.02), t_max=2.5),
    ],
    ids=lambda s: type(s).__name__,
)
def test_every_schedule_comes_back_with_its_parameters(tmp_path, schedule):
    base = torch.tensor([[schedule.t_max, schedule.t_min]], dtype=torch.float64)
    bounds = Bounds(0.1, 0.2, shift="additive", domain="time", floor=1e-3)
    artifact.save(Sampler(shared(base, schedule, bounds), solvers.Euler()), tmp_path)
    policy = artifact.load(tmp_path).policy
    assert policy.schedule == schedule and policy.bounds == bounds


def test_a_loaded_policy_is_frozen(folder):
    policy = artifact.load(folder).policy
    assert not policy.training
    assert not any(p.requires_grad for p in policy.parameters())
    assert same_tensors(dict(policy.state_dict()), dict(build("instance")[0].policy.state_dict()))


def test_the_config_says_where_it_comes_from_and_holds_no_absolute_path(folder):
    text = (folder / "config.json").read_text()
    config = json.loads(text)
    assert config["provenance"] == {"model": "toy"}
    assert (config["nfe"], config["analytic_first"], config["format"]) == (4, False, 3)
    assert config["policy"]["network"] == {"shape": [2], "condition_dim": 0, "width": 8, "depth": 2}
    assert '"/' not in text and str(folder) not in text


def test_a_folder_may_be_given_as_text(tmp_path):
    sampler, denoiser = build("global")
    artifact.save(sampler, str(tmp_path / "a"))
    assert torch.equal(draw(artifact.load(str(tmp_path / "a")), denoiser), draw(sampler, denoiser))


def test_a_policy_of_another_kind_is_refused_before_anything_is_written(tmp_path):
    class Own(Policy):
        steps = 1

        def forward(self, noise, features=None, index=None):
            raise NotImplementedError

    words = "policy must be one of Fixed, LearnedPolicy.* to be saved, got Own"
    with pytest.raises(TypeError, match=words):
        artifact.save(Sampler(Own(), solvers.Euler()), tmp_path)
    assert contents(tmp_path) == {}


def test_a_config_that_cannot_be_written_leaves_no_temporary(tmp_path):
    for value in (float("nan"), tmp_path):
        with pytest.raises(ValueError) as error:
            artifact.save(build("fixed")[0], tmp_path, {"loss": value})
        assert sentence(error).startswith("provenance must be JSON, got something else: ")
        assert contents(tmp_path) == {}


def test_a_provenance_that_cannot_be_written_leaves_the_artifact_that_was_there(folder):
    before = contents(folder)
    with pytest.raises(ValueError):
        artifact.save(build("global")[0], folder, {"data": folder})
    assert contents(folder) == before
    artifact.load(folder)


def test_a_sampler_written_over_a_budget_takes_its_place(folder):
    (folder / "budget.json").write_text("{}")
    assert (
        "holds a budget, each sample its own number of steps: use indis.bench.budget.load"
        in unreadable(folder)
    )
    artifact.save(build("global")[0], folder)
    assert artifact.load(folder).nfe == 3


def test_a_folder_without_config_is_no_artifact(tmp_path):
    assert "is not an artifact: config.json is missing" in unreadable(tmp_path, FileNotFoundError)


def test_missing_weights_are_named(folder):
    (folder / "policy.safetensors").unlink()
    assert "policy.safetensors does not exist" in unreadable(folder, FileNotFoundError)


def test_damaged_weights_are_named(folder):
    path = folder / "policy.safetensors"
    path.write_bytes(path.read_bytes()[:-4])
    assert "policy.safetensors is damaged" in unreadable(folder)


def test_weights_of_another_network_are_refused(folder):
    edit(folder, lambda config: config["policy"]["network"].update(width=16))
    assert "is not a complete artifact" in unreadable(folder)


def test_a_folder_that_was_half_overwritten_is_told_from_a_good_one(folder, tmp_path):
    other = build("instance")[0]
    other.policy.logits.table.data += 1
    artifact.save(other, tmp_path / "other")
    (folder / "policy.safetensors").write_bytes(
        (tmp_path / "other" / "policy.safetensors").read_bytes()
    )
    assert "is not the one that config.json was written with" in unreadable(folder)


@pytest.mark.parametrize("version", [0, 1, 4, "3", None])
def test_another_format_is_refused(folder, version):
    edit(folder, lambda config: config.update(format=version))
    assert f"must have format 3, got {version!r}" in unreadable(folder)


@pytest.mark.parametrize("text", ["", "{", "[1]", "null"])
def test_a_damaged_config_is_named(folder, text):
    (folder / "config.json").write_text(text)
    assert str(folder / "config.json") in unreadable(folder)


@pytest.mark.parametrize("key", ["solver", "policy", "analytic_first"])
def test_a_missing_entry_is_named(folder, key):
    edit(folder, lambda config: config.pop(key))
    text = unreadable(folder)
    assert "is not a complete artifact" in text and key in text


@pytest.mark.parametrize("part", ["solver", "policy"])
def test_an_unknown_type_lists_the_known_ones(folder, part):
    edit(folder, lambda config: config[part].update(type="Exec"))
    text = unreadable(folder)
    assert "'Exec'" in text
    assert ("UniPC" if part == "solver" else "LearnedPolicy") in text


def test_an_unknown_schedule_lists_the_known_ones(folder):
    edit(folder, lambda config: config["policy"]["schedule"].update(type="Cosine"))
    text = unreadable(folder)
    assert "'Cosine'" in text and "RectifiedFlow" in text


@pytest.mark.parametrize(
    ("part", "field"),
    [
        (("solver",), "order"),
        (("policy", "schedule"), "t_max"),
        (("policy", "bounds"), "keep"),
        (("policy", "network"), "shape"),
        (("policy", "network"), "width"),
        (("policy",), "reads"),
        (("policy",), "to_zero"),
    ],
)
def test_a_missing_field_is_refused_and_not_defaulted(folder, part, field):
    def drop(config):
        for name in part:
            config = config[name]
        del config[field]

    edit(folder, drop)
    text = unreadable(folder)
    assert "is not a complete artifact" in text and field in text


def test_an_unknown_field_is_refused(folder):
    edit(folder, lambda config: config["policy"]["bounds"].update(power=9))
    assert "power" in unreadable(folder)


def test_entries_of_another_kind_are_refused(folder):
    edit(folder, lambda config: config.update(solver="ipndm"))
    assert "an object with a type was expected, got 'ipndm'" in unreadable(folder)


def test_an_analytic_first_step_is_true_or_false(folder):
    edit(folder, lambda config: config.update(analytic_first="no"))
    assert "analytic_first must be true or false, got 'no'" in unreadable(folder)


def test_one_that_ships_is_loaded_by_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert artifact.load("fashion-nfe3-god").nfe == 3
    artifact.save(build("fixed")[0], "fashion-nfe3-god")  # a folder here comes first
    assert (
        artifact.load("fashion-nfe3-god").policy.describe() == build("fixed")[0].policy.describe()
    )

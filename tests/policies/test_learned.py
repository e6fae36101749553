"""The learned policy's choices: what it moves, what learns, and what samples it reads."""

import pytest
import torch

from indis import EDM, IPNDM, Bounds, Fixed, Form, Sampler, Wrapped, grids
from indis.discovery import classes_in
from indis.methods import METHODS, POLICIES, Method
from learned import closed, per_sample, phi, shared
from problems import seeded
from small_cases import sentence

BASE = grids.polynomial(EDM(), 4)


def pictures(*shape):
    """A denoiser of noise, for samples of any shape."""
    return Wrapped(lambda x, t, condition: torch.tanh(x), EDM(), shape, Form.NOISE)


def policies(shape):
    """Policies that read samples of a shape, after some training."""
    made = [
        phi(BASE, EDM(), Bounds(), shape=shape, width=8),
        closed(BASE, EDM(), Bounds(), shape=shape, width=8, native=Form.NOISE, picture="both"),
    ]
    for policy in made:
        torch.nn.init.normal_(policy.logits.head, std=0.3)
    return made


@pytest.mark.parametrize("size", [(8, 8), (12, 16), (9, 7)])
def test_a_policy_of_pictures_draws_them_in_another_size(size):
    for policy in policies((2, 8, 8)):
        noise = seeded(3, 2, *size, seed=1, dtype=torch.float32)
        with torch.no_grad():
            drawn = Sampler(policy, IPNDM(3))(pictures(2, *size), noise)
        assert drawn.shape == noise.shape and bool(drawn.isfinite().all())


@pytest.mark.parametrize(
    ("fitted", "given", "reads"),
    [
        ((2, 8, 8), (3, 8, 8), r"\(2, height, width\) with sides of at least 4, got \(3, 8, 8\)"),
        ((2, 8, 8), (2, 3, 8), r"\(2, height, width\) with sides of at least 4, got \(2, 3, 8\)"),
        ((2, 8, 8), (2, 5, 8, 8), r"\(2, height, width\) .* got \(2, 5, 8, 8\)"),
        ((2, 5, 8, 8), (3, 5, 8, 8), r"\(2, frames, height, width\) .* got \(3, 5, 8, 8\)"),
        ((6,), (7,), r"\(6,\), got \(7,\)"),
    ],
)
def test_samples_that_the_trunk_does_not_read_are_refused(fitted, given, reads):
    for policy in policies(fitted):
        with pytest.raises(ValueError, match=f"shape that the sampler's network reads, {reads}"):
            Sampler(policy, IPNDM(3))(pictures(*given), torch.zeros(1, *given))


def test_what_it_moves_is_what_has_room():
    everything = closed(
        BASE,
        EDM(),
        Bounds(weights=0.1),
        shape=(2, 8, 8),
        native=Form.NOISE,
        order=2,
        picture="free",
    )
    assert everything.moves == ("tau", "dtau", "gamma", "weights", "picture")
    assert shared(BASE, EDM(), Bounds(dtau=0.0, gamma=0.0), 2).moves == ("tau",)


def test_every_parameter_is_in_one_group():
    for policy in (*policies((2, 8, 8)), shared(BASE, EDM(), Bounds())):
        groups = policy.parameter_groups()
        assert list(groups) == ["plan", "network", "picture"]
        grouped = [id(p) for group in groups.values() for p in group]
        assert sorted(grouped) == sorted(map(id, policy.parameters()))
    assert groups == {"plan": [policy.logits.table], "network": [], "picture": []}


def test_the_shared_plan_is_a_method_of_every_policy_that_has_one():
    one = shared(BASE, EDM(), Bounds())
    for policy in (one, Fixed(BASE), *policies((6,))):
        assert torch.equal(policy.shared_plan().tau, BASE)
    with pytest.raises(TypeError, match="3 plans, none that all samples share"):
        per_sample(3, BASE, EDM(), Bounds()).shared_plan()


def test_a_fixed_plan_is_one_object_in_every_run():
    """Runs keep the numbers of a plan with it."""
    policy, noise = Fixed(BASE), seeded(2, 3)
    assert policy(noise) is policy(noise)
    policy.load_state_dict(policy.state_dict(), assign=True)
    assert policy(noise) is not None and torch.equal(policy(noise).tau, BASE)


def test_a_policy_of_one_number_of_steps_has_no_other():
    for policy in (Fixed(BASE), shared(BASE, EDM(), Bounds())):
        assert policy.at(4).steps == 4 and policy.counts == (4,)
        with pytest.raises(ValueError, match="steps must be 4, got 3") as error:
            policy.at(3)
        sentence(error)


def test_methods_and_stored_policies_are_found_by_their_files(tmp_path, monkeypatch):
    (tmp_path / "papers").mkdir()
    (tmp_path / "papers" / "__init__.py").write_text("")
    (tmp_path / "papers" / "mine.py").write_text(
        "from indis.methods import GOD\n\nclass Mine(GOD):\n    name = 'mine'\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    (found,) = classes_in("papers", [str(tmp_path / "papers")])
    assert issubclass(found, Method) and found.name == "mine"
    assert list(METHODS)[0] == "indis" and len(METHODS) == 17
    assert set(POLICIES) == {
        "Fixed",
        "LearnedPolicy",
        "Lifted",
        "MidpointPredictor",
        "MidpointTable",
        "OneShot",
    }

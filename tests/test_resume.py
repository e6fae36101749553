"""What a checkpoint belongs to, what a fit may not see, and what is no number: each is told, none
is silent."""

import math
from dataclasses import replace

import pytest
import torch

from fits import SMALL, advance, finish, start, state
from indis import INDIS, Recipe, TeachConfig, endpoint_batches, load_endpoints, teach_folder
from indis.losses import mse, squared_distance
from indis.methods import GOD, EveryN
from indis.storage import as_json
from small_cases import TinyClasses, sentence, tiny_teacher, toy, toy_pairs

GLOBAL = GOD(3, "euler", "uniform", recipe=Recipe(**SMALL))


def begun(method=GLOBAL, data=None):
    return method.tuning(toy(), data or toy_pairs(), squared_distance)


@pytest.mark.parametrize(
    "changes",
    [
        {"solver": "ipndm:2"},
        {"gamma": 0.1},
        {"keep": "answer"},
        {"analytic_first": True},
        {"steps": 4},
    ],
    ids=str,
)
def test_a_checkpoint_of_another_sampler_is_refused_before_anything_changes(tmp_path, changes):
    process = begun()
    advance(process, 2)
    process.save(tmp_path / "c.safetensors")
    other = begun(replace(GLOBAL, **changes))
    before = state(other)
    with pytest.raises(ValueError, match="was written with another configuration") as error:
        other.resume(tmp_path / "c.safetensors")
    sentence(error)
    assert other.step == 0 and all(
        torch.equal(before[name], value) for name, value in state(other).items()
    )


def test_a_checkpoint_of_other_end_points_is_refused(tmp_path):
    process = begun()
    advance(process, 2)
    process.save(tmp_path / "c.safetensors")
    with pytest.raises(ValueError, match="another configuration"):
        begun(data=toy_pairs(96, first=500)).resume(tmp_path / "c.safetensors")


def test_what_is_told_about_a_run_may_hold_tuples(tmp_path):
    process, meta = begun(), {"shape": (1, 4, 4)}
    advance(process, 2)
    process.save(tmp_path / "c.safetensors", meta)
    again = begun()
    again.resume(tmp_path / "c.safetensors", meta)
    assert again.step == 2 and as_json(meta) == {"shape": [1, 4, 4]}
    for _ in range(2):
        list(
            teach_folder(
                TeachConfig(count=2),
                TinyClasses(),
                tiny_teacher(),
                tmp_path / "data",
                provenance=meta,
            )
        )
    assert load_endpoints(tmp_path / "data")[1]["provenance"] == as_json(meta)


def test_held_out_end_points_change_nothing_that_is_learned():
    data, few = (
        toy_pairs(24),
        Recipe(**SMALL | {"holdout": 16, "batch": 8, "iterations": 4, "validate_every": 4}),
    )
    spoiled = replace(data, target=torch.cat([data.target[:8], data.target[8:] + 1]))
    for method in (GLOBAL, EveryN(3, "euler", "uniform", fewest=2, width=8)):
        method = replace(method, recipe=replace(few, probes=64))
        fitted = [
            finish(begun(method, part)).sampler.policy.state_dict() for part in (data, spoiled)
        ]
        scales = [[v for name, v in policy.items() if name.endswith("scale")] for policy in fitted]
        assert scales[0] and all(torch.equal(a, b) for a, b in zip(*scales, strict=True))


def test_a_held_out_loss_that_is_no_number_stops_the_fit():
    data = toy_pairs(96)
    target = data.target.clone()
    target[-1] = math.nan
    process = begun(GLOBAL, replace(data, target=target))
    with pytest.raises(
        FloatingPointError, match="the held-out loss is not finite after iteration 0, got nan"
    ):
        list(process.run())


def test_a_held_out_loss_that_blows_up_leaves_the_best_plan():
    process = start(per_instance=False)
    good = advance(process, 3)[-1].best
    with torch.no_grad():
        process.sampler.policy.logits.table[0, 2] = math.nan
    with pytest.raises(FloatingPointError):
        list(process.run())
    assert process.validate() == pytest.approx(good)


def test_end_points_that_are_no_numbers_are_refused_by_their_seeds():
    class Broken(TinyClasses):
        def __call__(self, x, t, condition):
            answer = super().__call__(x, t, condition)
            answer[1] = math.inf
            return answer

    with pytest.raises(
        FloatingPointError, match=r"end points must be finite, those of seeds \[8\] are not"
    ):
        list(endpoint_batches(Broken(), tiny_teacher(), range(7, 10)))


def test_phi_begins_only_at_a_plan_of_its_own_solver():
    fitted = begun().sampler
    for changes in ({"solver": "ipndm:2"}, {"analytic_first": True}):
        phi = INDIS(3, "euler", "uniform", width=8, recipe=Recipe(**SMALL))
        with pytest.raises(ValueError, match="start must have been fitted on") as error:
            replace(phi, **changes).tuning(toy(), toy_pairs(), mse, start=fitted)
        sentence(error)

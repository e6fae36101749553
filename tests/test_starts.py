"""Several beginnings of one fit: the best goes on as if it had been alone, also after an
interrupt."""

import itertools
import math

import pytest

from fits import advance, finish, start, state
from indis import Recipe
from indis.losses import squared_distance
from indis.methods import GITS
from small_cases import same_tensors, sentence, toy, toy_pairs


def several(starts=3, **changes):
    return start(starts=starts, **changes)


def test_several_beginnings_go_on_from_the_best_as_if_it_had_been_alone():
    process = finish(several(seed=2))
    alone = [start(seed=2 * 3 + i) for i in range(3)]
    trials = []
    for run in alone:
        advance(run, 3)  # a quarter of 12
        trials.append(min(run.best, run.validate()))
    best = alone[trials.index(min(trials))]
    assert len(set(trials)) == 3
    assert same_tensors(state(process), state(finish(best)))
    assert process.best == best.best


def test_several_beginnings_tell_how_far_all_are():
    states = list(several().run())
    assert [s.step for s in states] == list(range(1, 3 * 2 + 12 + 1))
    assert {s.iterations for s in states} == {3 * 2 + 12}


@pytest.mark.parametrize("stop", [1, 3, 4, 9, 10, 13, 17])
def test_several_beginnings_resume_as_if_never_interrupted(tmp_path, stop):
    whole, broken, resumed = several(), several(), several()
    finish(whole)
    advance(broken, stop)
    broken.save(tmp_path / "checkpoint.safetensors", "mine")
    resumed.resume(tmp_path / "checkpoint.safetensors", "mine")
    assert resumed.step == stop
    finish(resumed)
    assert same_tensors(state(whole), state(resumed)) and whole.best == resumed.best


def test_a_checkpoint_of_one_beginning_is_not_one_of_several(tmp_path):
    advance(one := start(), 2)
    one.save(tmp_path / "checkpoint.safetensors")
    with pytest.raises(ValueError, match="runs missing from its header"):
        several().resume(tmp_path / "checkpoint.safetensors")
    advance(two := several(starts=2), 2)
    two.save(tmp_path / "checkpoint.safetensors")
    with pytest.raises(ValueError, match="another configuration"):
        several(starts=3).resume(tmp_path / "checkpoint.safetensors")


def test_several_beginnings_need_something_to_choose_by():
    with pytest.raises(ValueError, match="starts must be 1 with a holdout of 0") as error:
        several(holdout=0)
    sentence(error)


def test_what_has_no_seed_is_not_begun_twice():
    with pytest.raises(ValueError, match="starts must be 1 for what is computed once") as error:
        GITS(3, recipe=Recipe(starts=2, holdout=32)).tuning(toy(), toy_pairs(), squared_distance)
    sentence(error)


@pytest.mark.parametrize("starts", [1, 2])
def test_a_caller_that_stops_early_can_take_the_best_policy_so_far(starts):
    process = start(starts=starts, lr=1.0, iterations=16, validate_every=2)
    seen = {math.inf: None}
    for progress in itertools.islice(process.run(), 13):
        seen.setdefault(progress.best, progress.step)
    process.finish()
    assert process.validate() == process.best == min(seen)

"""Endpoints: a sample is its seed, a folder is whole or says what is missing."""

import shutil

import pytest
import torch

from indis import (
    LinearVP,
    RectifiedFlow,
    TeachConfig,
    Wrapped,
    endpoint_batches,
    gather,
    heuristic,
    load_endpoints,
    noise_from_seeds,
    teach,
    teach_folder,
)
from indis.endpoints import noise_checksum
from indis.storage import load_json
from small_cases import (
    Still,
    TinyClasses,
    contents,
    flip_last_byte,
    reseal,
    sentence,
    tiny_teacher,
    toy,
    toy_teacher,
)

CONFIG = TeachConfig(count=7, first_seed=40, shard=3, batch=2)
PROVENANCE = {"model": "tiny", "steps": 4}


def run(folder, config=CONFIG, provenance=PROVENANCE, denoiser=None):
    return teach_folder(
        config, denoiser or TinyClasses(), tiny_teacher(), folder, provenance=provenance
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished")
    list(run(folder))
    return folder


@pytest.fixture
def copy(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "copy")


def refused(folder, kind=ValueError, **changes):
    """The sentence of a refused run, which must not have touched the folder."""
    before = contents(folder)
    with pytest.raises(kind) as error:
        list(run(folder, **changes))
    assert contents(folder) == before
    return sentence(error)


def unreadable(folder, kind=ValueError):
    with pytest.raises(kind) as error:
        load_endpoints(folder)
    return sentence(error)


def test_a_row_of_noise_depends_on_its_seed_alone():
    together, alone = noise_from_seeds([5, 9, 5], (2, 3)), noise_from_seeds([9], (2, 3))
    assert torch.equal(together[1], alone[0])
    assert torch.equal(together[0], together[2])
    assert not torch.equal(together[0], together[1])
    expected = torch.randn(2, 3, generator=torch.Generator().manual_seed(9))
    assert torch.equal(alone[0], expected)


def test_noise_is_unit_normal_and_leaves_the_callers_generator_alone():
    before = torch.get_rng_state()
    noise = noise_from_seeds(range(4000), (2,))
    assert torch.equal(torch.get_rng_state(), before)
    assert noise.mean(0).tolist() == pytest.approx([0, 0], abs=0.05)
    assert noise.std(0).tolist() == pytest.approx([1, 1], abs=0.05)
    assert torch.corrcoef(noise.T)[0, 1].item() == pytest.approx(0, abs=0.05)


def test_the_fingerprint_of_noise_follows_the_shape_of_a_sample():
    assert noise_checksum((2,)) == noise_checksum((2,))
    assert len({noise_checksum((2,)), noise_checksum((3,)), noise_checksum((1, 28, 28))}) == 3


def test_endpoints_do_not_depend_on_the_batch():
    whole, parts = (
        gather(list(endpoint_batches(toy(), toy_teacher(5), range(7), batch=n))) for n in (7, 3)
    )
    assert parts.seeds.tolist() == list(range(7))
    assert torch.equal(parts.noise, whole.noise)
    torch.testing.assert_close(parts.target, whole.target, rtol=0, atol=1e-5)
    single = toy_teacher(5)(toy(), noise_from_seeds([4], (2,)))
    torch.testing.assert_close(whole.target[4:5], single, rtol=0, atol=1e-5)


def test_endpoints_are_taught_in_memory_at_once():
    taught = teach(TinyClasses(), tiny_teacher(), range(40, 47), batch=3)
    parts = gather(endpoint_batches(TinyClasses(), tiny_teacher(), range(40, 47), batch=3))
    assert len(taught) == 7 and taught.seeds.tolist() == list(range(40, 47))
    for name in ("noise", "target"):
        assert torch.equal(getattr(taught, name), getattr(parts, name))
    assert torch.equal(taught.condition.inputs["label"], parts.condition.inputs["label"])
    with pytest.raises(ValueError, match="at least one set of endpoints"):
        teach(TinyClasses(), tiny_teacher(), [])


def test_a_folder_tells_how_sampling_began_apart_and_resumes_those_that_did_not_say(tmp_path):
    def record(schedule, folder):
        model = Wrapped(Still(), schedule, (3,), "velocity", fingerprint="still")
        teacher = heuristic(model, solver="euler", grid="uniform", steps=2)
        config = TeachConfig(count=2, shard=2)
        list(teach_folder(config, model, teacher, tmp_path / folder, provenance={}))
        return load_json(tmp_path / folder / "meta.json")["denoiser"]["schedule"]

    assert record(LinearVP(), "a") == (
        "LinearVP(beta_min=0.1, beta_max=20.0, t_min=0.001, t_max=1.0, domain='log_snr')"
    )
    assert "prior='unit'" in record(LinearVP(prior="unit"), "b")
    with pytest.raises(ValueError, match="another denoiser: schedule LinearVP"):
        record(LinearVP(prior="unit"), "a")


def test_targets_can_be_used_where_gradients_are_recorded():
    for part in endpoint_batches(toy(), toy_teacher(2), range(2), batch=1):
        assert not part.target.is_inference()
        assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled()


def test_a_part_of_the_endpoints_keeps_rows_together():
    data = gather(list(endpoint_batches(TinyClasses(), tiny_teacher(), range(12))))
    part = data[torch.tensor([11, 2])]
    assert len(part) == 2 and part.seeds.tolist() == [11, 2]
    assert part.condition.inputs["label"].tolist() == [1, 2]
    assert torch.equal(part.noise, noise_from_seeds([11, 2], (1, 4, 4)))
    assert torch.equal(part.condition.features, data.condition.features[[11, 2]])


def test_teaching_writes_shards_and_tells_how_far_it_is(tmp_path):
    assert [(p.done, p.count) for p in run(tmp_path)] == [(3, 7), (6, 7), (7, 7)]
    names = [f"endpoints-0000{n}.safetensors" for n in range(3)]
    assert list(contents(tmp_path)) == [*names, "meta.json"]
    assert list(load_json(tmp_path / "meta.json")["shards"]) == names


def test_what_was_taught_comes_back_with_its_conditions(finished):
    data, meta = load_endpoints(finished)
    made = gather(list(endpoint_batches(TinyClasses(), tiny_teacher(), range(40, 47))))
    assert data.seeds.tolist() == list(range(40, 47))
    assert data.condition.inputs["label"].tolist() == [0, 1, 2, 3, 4, 5, 6]
    assert torch.equal(data.condition.features, torch.eye(10)[:7] / 10**0.5)
    assert torch.equal(data.noise, made.noise)
    torch.testing.assert_close(data.target, made.target, rtol=0, atol=1e-6)
    assert meta["provenance"] == PROVENANCE


def one_step():
    return heuristic(Still(), solver="euler", grid="uniform", steps=1)


def test_a_model_without_condition_comes_back_without(tmp_path):
    list(teach_folder(TeachConfig(count=2), Still(), one_step(), tmp_path, provenance={}))
    data, _ = load_endpoints(tmp_path)
    assert data.condition.inputs == {} and data.condition.features is None
    assert torch.equal(data.target, noise_from_seeds([0, 1], (3,)))


def test_an_interrupted_run_goes_on_and_gives_the_same_bytes(finished, tmp_path):
    process = run(tmp_path)
    assert next(process).done == 3
    process.close()
    assert "endpoints-00001.safetensors" not in contents(tmp_path)
    denoiser = TinyClasses()
    assert [p.done for p in run(tmp_path, denoiser=denoiser)] == [3, 6, 7]
    assert contents(tmp_path) == contents(finished)
    assert denoiser.asked == (7 - 3) * 4


def test_a_crash_within_a_shard_leaves_only_whole_shards(finished, tmp_path):
    class Crashing(TinyClasses):
        def __call__(self, x, t, condition):
            if self.asked > 15:
                raise KeyboardInterrupt
            return super().__call__(x, t, condition)

    with pytest.raises(KeyboardInterrupt):
        list(run(tmp_path, denoiser=Crashing()))
    assert list(contents(tmp_path)) == ["endpoints-00000.safetensors", "meta.json"]
    list(run(tmp_path))
    assert contents(tmp_path) == contents(finished)


@pytest.mark.parametrize(("count", "kept"), [(6, 2), (7, 2), (3, 1)])
def test_more_endpoints_are_added_to_what_there_is(tmp_path, count, kept):
    list(run(tmp_path / "grown", TeachConfig(count, 40, 3, 2)))
    denoiser, larger = TinyClasses(), TeachConfig(11, 40, 3, 2)
    list(run(tmp_path / "grown", larger, denoiser=denoiser))
    list(run(tmp_path / "at once", larger))
    assert contents(tmp_path / "grown") == contents(tmp_path / "at once")
    assert denoiser.asked == tiny_teacher().nfe * (11 - 3 * kept)


def test_a_finished_run_is_not_repeated(copy):
    before, denoiser = contents(copy), TinyClasses()
    assert [p.done for p in run(copy, denoiser=denoiser)] == [3, 6, 7]
    assert contents(copy) == before
    assert denoiser.asked == 0


@pytest.mark.parametrize(
    "changed", [TeachConfig(6, 40, 3, 2), TeachConfig(7, 41, 3, 2), TeachConfig(7, 40, 4, 2)]
)
def test_another_config_is_refused(copy, changed):
    text = refused(copy, config=changed)
    assert "holds endpoints with another config" in text and str(copy) in text


def test_another_provenance_is_refused(copy):
    assert "another provenance" in refused(copy, provenance=PROVENANCE | {"steps": 5})


def test_missing_and_damaged_shards_are_made_again_and_no_other(finished, copy):
    flip_last_byte(copy / "endpoints-00000.safetensors")
    (copy / "endpoints-00001.safetensors").unlink()
    denoiser, names = TinyClasses(), ("endpoints-00000.safetensors", "endpoints-00001.safetensors")
    assert [(p.done, p.remade) for p in run(copy, denoiser=denoiser)] == [
        (n, names) for n in (3, 6, 7)
    ]
    assert contents(copy) == contents(finished)  # the order of the shards in meta.json included
    assert denoiser.asked == 6 * tiny_teacher().nfe
    assert {p.remade for p in run(copy)} == {()}


def test_mending_that_is_interrupted_goes_on(finished, copy):
    for number in range(2):
        (copy / f"endpoints-0000{number}.safetensors").unlink()
    process = run(copy)
    next(process)
    process.close()
    denoiser = TinyClasses()
    list(run(copy, denoiser=denoiser))
    assert contents(copy) == contents(finished)
    assert denoiser.asked == 3 * tiny_teacher().nfe


def test_a_folder_without_endpoints_says_what_to_run(tmp_path):
    assert "run `indis teach` first" in unreadable(tmp_path / "nowhere", FileNotFoundError)


def test_a_missing_shard_is_named(copy):
    (copy / "endpoints-00001.safetensors").unlink()
    said = unreadable(copy, FileNotFoundError)
    assert said.endswith(
        "endpoints-00001.safetensors is missing: run `indis teach` again to mend it"
    )


def test_one_flipped_bit_is_noticed(copy):
    flip_last_byte(copy / "endpoints-00002.safetensors")
    said = unreadable(copy)
    assert "endpoints-00002.safetensors is damaged" in said and said.endswith(
        "run `indis teach` again to mend it"
    )


def test_an_unfinished_set_says_how_to_finish_it(tmp_path):
    next(run(tmp_path))
    text = unreadable(tmp_path)
    assert "1 of 3 shards" in text and "run `indis teach` again" in text


def test_noise_of_another_torch_is_noticed(copy):
    meta = load_json(copy / "meta.json")
    reseal(copy / "meta.json", meta | {"noise": "0" * 16})
    assert "draws other noise" in unreadable(copy)
    assert "another noise" in refused(copy)


@pytest.mark.parametrize("meta", ["[]", '{"format": 2}', "{"])
def test_metadata_of_another_format_is_refused(copy, meta):
    (copy / "meta.json").write_text(meta)
    assert str(copy / "meta.json") in unreadable(copy)


@pytest.mark.parametrize("field", ["count", "shard", "batch"])
def test_sizes_below_one_are_refused(field):
    with pytest.raises(ValueError, match=f"{field} must be at least 1, got 0"):
        TeachConfig(**{field: 0})


@pytest.mark.parametrize(
    ("first", "count"), [(-1, 1), (2**32, 1), (2**32 - 1, 2), (10**20, 1), (0, 2**32 + 1)]
)
def test_seeds_that_torch_cannot_tell_apart_are_refused(first, count):
    with pytest.raises(ValueError) as error:
        TeachConfig(first_seed=first, count=count)
    assert sentence(error).startswith(
        ("first_seed must be in 0 ... 42949672", "count must be at most 4294967296")
    )
    why = [torch.randn(3, generator=torch.Generator().manual_seed(seed)) for seed in (0, 2**32)]
    assert torch.equal(*why)
    assert TeachConfig(first_seed=2**32 - 2, count=2).count == 2


def test_a_folder_may_be_given_as_text(finished, tmp_path):
    list(run(str(tmp_path)))
    assert contents(tmp_path) == contents(finished)
    assert load_endpoints(str(tmp_path))[1] == load_endpoints(tmp_path)[1]


def test_what_endpoints_yields_can_be_gathered_as_it_is():
    data = gather(endpoint_batches(TinyClasses(), tiny_teacher(), range(5), batch=2))
    assert data.seeds.tolist() == list(range(5))
    with pytest.raises(ValueError, match="got none"):
        gather(iter(()))


@pytest.mark.parametrize("batch", [0, -1])
def test_a_batch_below_one_is_refused_at_once(batch):
    with pytest.raises(ValueError) as error:
        endpoint_batches(TinyClasses(), tiny_teacher(), range(5), batch=batch)
    assert sentence(error) == f"batch must be at least 1, got {batch}"


def test_no_seeds_are_no_rows_of_noise():
    noise = noise_from_seeds([], (2, 3))
    assert (noise.shape, noise.dtype) == ((0, 2, 3), torch.float32)


def test_a_run_goes_on_with_another_batch(tmp_path):
    run = {
        "denoiser": TinyClasses(),
        "teacher": tiny_teacher(),
        "folder": tmp_path,
        "provenance": {},
    }
    next(teach_folder(TeachConfig(count=4, shard=2, batch=2), **run))
    list(teach_folder(TeachConfig(count=4, shard=2, batch=1), **run))
    assert load_endpoints(tmp_path)[0].seeds.tolist() == [0, 1, 2, 3]


def wrapped(slope, fingerprint="unsaved", schedule=None):
    schedule = schedule or RectifiedFlow(0.01, 0.98)
    return Wrapped(lambda x, t, c: slope * x, schedule, (2,), "velocity", fingerprint=fingerprint)


def made(folder, model, count):
    teacher = heuristic(model, solver="euler", grid="uniform", steps=2)
    return list(
        teach_folder(TeachConfig(count=count, shard=4), model, teacher, folder, provenance={})
    )


def test_end_points_of_two_models_do_not_mix(tmp_path):
    made(tmp_path / "a", wrapped(0.1, "one"), 4)
    with pytest.raises(ValueError, match=r"another denoiser: fingerprint one there, two given$"):
        made(tmp_path / "a", wrapped(0.2, "two"), 8)
    with pytest.raises(
        ValueError, match=r"another denoiser: schedule RectifiedFlow\(t_min=0.01, .* there, Rect"
    ):
        made(tmp_path / "a", wrapped(0.1, "one", RectifiedFlow(0.02, 0.98)), 8)
    assert made(tmp_path / "a", wrapped(0.1, "one"), 8)[-1].done == 8
    made(tmp_path / "b", wrapped(0.1), 4)
    made(tmp_path / "b", wrapped(0.1), 4)  # nothing is added
    with pytest.raises(
        ValueError, match="fingerprint must be given to a wrapped denoiser to add to end points"
    ):
        made(tmp_path / "b", wrapped(0.2), 8)


def test_end_points_that_do_not_tell_their_denoiser_are_refused(tmp_path):
    list(run(tmp_path))
    meta = load_json(tmp_path / "meta.json")
    assert meta.pop("denoiser")["name"] == "tiny"
    reseal(tmp_path / "meta.json", meta)
    with pytest.raises(ValueError, match="denoiser must be of type dict, got None"):
        list(run(tmp_path))


@pytest.mark.parametrize("seed", [-1, 1.5, 2**32])
def test_what_is_no_seed_is_refused(seed):
    with pytest.raises(ValueError, match="seeds must be whole numbers in 0 ... 4294967295, got"):
        noise_from_seeds([0, seed], (2,))

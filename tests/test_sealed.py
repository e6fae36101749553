"""Every changed bit of a sealed file is noticed, and no file is larger or deeper than expected."""

import errno
import os
import random
import subprocess
import sys

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from fits import SMALL, advance
from indis import Recipe, artifact
from indis.losses import squared_distance
from indis.methods import GOD, INDIS
from indis.sealed import (
    SizedBy,
    load_checkpoint,
    load_record,
    save_checkpoint,
    save_record,
)
from indis.storage import (
    TEMPORARY,
    DamagedFileError,
    checksum,
    load_json,
    load_tensors,
    save_tensors,
    write_aside,
)
from indis.writer import one_writer
from small_cases import contents, reseal, sentence, toy, toy_pairs


@pytest.fixture
def record(tmp_path):
    save_record(tmp_path / "a.json", 3, {"steps": 12, "name": "0" * 64, "rate": 0.25})
    return tmp_path / "a.json"


@pytest.fixture
def checkpoint(tmp_path):
    tensors = {"a": torch.arange(6.0), "b": torch.ones(2, 2)}
    save_checkpoint(tmp_path / "c.safetensors", tensors, {"step": 7, "note": "0" * 64})
    return tmp_path / "c.safetensors"


def test_a_record_and_a_checkpoint_come_back(record, checkpoint):
    assert load_record(record, 3) == {"format": 3, "steps": 12, "name": "0" * 64, "rate": 0.25}
    tensors, meta = load_checkpoint(checkpoint, "step")
    assert tensors["a"].tolist() == list(range(6)) and meta["step"] == 7


def flips(path, every=1):
    """Each file that differs from this one in one bit."""
    raw = path.read_bytes()
    for place in range(0, len(raw), every):
        for bit in range(8):
            changed = bytearray(raw)
            changed[place] ^= 1 << bit
            path.write_bytes(changed)
            yield place, bit
    path.write_bytes(raw)


def test_every_bit_of_a_record_counts(record):
    for place in flips(record):
        with pytest.raises(DamagedFileError) as error:
            load_record(record, 3)
        assert str(record) in sentence(error), place
    assert load_record(record, 3)["steps"] == 12


def test_every_bit_of_a_checkpoint_counts(checkpoint):
    for place in flips(checkpoint):
        with pytest.raises(DamagedFileError) as error:
            load_checkpoint(checkpoint, "step")
        assert str(checkpoint) in sentence(error), place


@pytest.mark.parametrize("name", ["fashion-nfe3-god", "fashion-nfe7"])
def test_every_changed_digit_of_a_shipped_config_is_refused(tmp_path, name):
    for file, raw in contents(artifact.find(name)).items():
        (tmp_path / file).write_bytes(raw)
    config = tmp_path / "config.json"
    raw, draw = config.read_bytes(), random.Random(0)
    digits = [i for i, byte in enumerate(raw) if chr(byte).isdigit()]
    for place in draw.sample(digits, 60):
        other = draw.choice([d for d in b"0123456789" if d != raw[place]])
        config.write_bytes(raw[:place] + bytes([other]) + raw[place + 1 :])
        with pytest.raises(DamagedFileError):
            artifact.load(tmp_path)
    config.write_bytes(raw)
    artifact.load(tmp_path)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[" * 100_000, "nested deeper than 64"),
        ('{"a": ' * 65 + "1" + "}" * 65, "nested deeper than 64"),
        ('{"a": ' + "9" * 5000 + "}", "more than 20 digits"),
        ('{"a": NaN}', "not finite"),
        ('{"a": 1e999}', "not finite"),
    ],
)
def test_json_is_bounded_before_it_is_built(tmp_path, text, words):
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(DamagedFileError, match=words) as error:
        load_json(path)
    assert sentence(error).startswith(f"{path} is not valid JSON")
    header = tmp_path / "a.safetensors"
    save_file({"x": torch.ones(1)}, header, metadata={"meta": text})
    with pytest.raises(DamagedFileError, match=words):
        load_tensors(header)


def test_brackets_in_texts_are_no_nesting(tmp_path):
    (tmp_path / "a.json").write_text('{"a": "' + '[{\\"' * 200 + '"}')
    assert load_json(tmp_path / "a.json")["a"].count("[") == 200


def test_a_large_file_is_refused_unread(tmp_path):
    path = tmp_path / "a.json"
    with path.open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(DamagedFileError, match="larger than 64 MiB"):
        load_json(path)


@pytest.mark.parametrize(
    ("name", "value"),
    [("width", 20_000), ("width", 10**9), ("depth", 10**7), ("condition_dim", 10**7)],
)
def test_a_small_artifact_cannot_ask_for_a_large_network(tmp_path, name, value):
    method = INDIS(3, "euler", "uniform", width=8, depth=1, recipe=Recipe(**SMALL))
    artifact.save(method.untrained(toy()), tmp_path)
    config = load_json(tmp_path / "config.json")
    config["policy"]["network"][name] = value
    reseal(tmp_path / "config.json", config)
    with pytest.raises(DamagedFileError) as error:
        artifact.load(tmp_path)
    assert "is not a complete artifact" in sentence(error)


def test_what_weights_explain_may_be_allocated():
    with SizedBy({"x": torch.zeros(10)}):
        torch.zeros(1000)
        with pytest.raises(ValueError, match=r"size of \[100000, 100000\]"):
            torch.zeros(100_000, 100_000)


def test_weights_that_are_not_finite_are_refused(tmp_path):
    sampler = GOD(3, "euler", "uniform").untrained(toy())
    artifact.save(sampler, tmp_path)
    tensors, _ = load_tensors(tmp_path / "policy.safetensors")
    name = min(tensors)
    tensors[name].view(-1)[0] = torch.nan
    save_tensors(tmp_path / "policy.safetensors", tensors)
    config = load_json(tmp_path / "config.json")
    reseal(
        tmp_path / "config.json",
        config | {"weights": checksum(tmp_path / "policy.safetensors")},
    )
    with pytest.raises(DamagedFileError, match="is not finite"):
        artifact.load(tmp_path)


def begun():
    return GOD(3, "euler", "uniform", recipe=Recipe(**SMALL)).tuning(
        toy(), toy_pairs(), squared_distance
    )


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t, m: t.pop(min(n for n in t if n.startswith("policy."))), "Missing key|missing"),
        (lambda t, m: t.pop("optimizer.0.exp_avg"), "exp_avg"),
        (lambda t, m: t.update({"optimizer.0.exp_avg": torch.ones(1)}), "must have shape"),
        (lambda t, m: m.update(step=-5), "step must be in 0"),
        (lambda t, m: m.update(step=10**9), "step must be in 0"),
        (lambda t, m: m.update(step="x"), "step must be in 0"),
        (lambda t, m: m.pop("curve"), "curve missing"),
        (lambda t, m: m.update(curve=[[1]]), "not a complete checkpoint"),
        (lambda t, m: m.update(best="low"), "not a complete checkpoint"),
    ],
)
def test_a_forged_checkpoint_is_one_sentence(tmp_path, change, words):
    process, path = begun(), tmp_path / "c.safetensors"
    advance(process, 3)
    process.save(path)
    tensors, meta = load_checkpoint(path)
    change(tensors, meta)
    save_checkpoint(path, tensors, {k: v for k, v in meta.items() if k not in ("format", "sha256")})
    with pytest.raises(DamagedFileError, match=words) as error:
        begun().resume(path)
    assert str(path) in sentence(error)


def test_the_curve_comes_back_with_its_checkpoint(tmp_path):
    process = begun()
    advance(process, 3)
    process.save(tmp_path / "c.safetensors")
    again = begun()
    again.resume(tmp_path / "c.safetensors")
    assert again.curve == process.curve
    straight = begun()
    list(straight.run())
    list(again.run())
    assert again.curve == straight.curve and len(straight.curve) > 1


LOCK = """
import sys, time
from pathlib import Path
from indis.writer import one_writer
with one_writer(Path(sys.argv[1])):
    print("mine", flush=True)
    time.sleep(60)
"""


def test_a_folder_has_one_writer_until_that_dies(tmp_path):
    other = subprocess.Popen(
        [sys.executable, "-c", LOCK, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert other.stdout.readline() == "mine\n"
        refused = pytest.raises(OSError, match="is being written by another process")
        with refused, one_writer(tmp_path):
            pass
    finally:
        other.kill()
        other.wait()
    (tmp_path / "deeper").mkdir()
    left = tmp_path / "deeper" / f".curve.json.abc{TEMPORARY}"
    left.write_text("half")
    with one_writer(tmp_path):
        assert not left.exists()
    assert contents(tmp_path) == {}


@pytest.mark.parametrize("kind", ["os", "safetensors"])
def test_a_full_disk_is_one_sentence_that_names_the_file(tmp_path, kind):
    def full(temporary):
        temporary.write_text("half")
        if kind == "os":
            raise OSError(errno.ENOSPC, "No space left on device")
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    with pytest.raises(OSError) as error:
        write_aside(tmp_path / "a", full)
    assert error.value.errno == errno.ENOSPC and error.value.filename == str(tmp_path / "a")
    assert contents(tmp_path) == {}


def test_file_and_folder_reach_the_disk_around_the_rename(tmp_path, monkeypatch):
    done = []
    monkeypatch.setattr(os, "fsync", lambda handle: done.append("sync"))
    real = os.replace
    monkeypatch.setattr(os, "replace", lambda a, b: (done.append("rename"), real(a, b)))
    write_aside(tmp_path / "a", lambda temporary: temporary.write_text("new"))
    assert done == ["sync", "rename", "sync"]

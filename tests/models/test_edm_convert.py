"""Checkpoints are converted to the same network, and whatever else a file holds never runs."""

import io
import math
import os
import pickle
import struct
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch

import indis
import lookalike_edm
from indis.cli import main as entry
from indis.models.edm import convert, pickles
from indis.storage import load_json, save_json
from lookalike_edm import Persistent, published_names
from small_cases import contents, sentence

TESTS = Path(__file__).parents[1]


def converted(tmp_path, **given):
    network, outer, sizes = lookalike_edm.write(tmp_path / "file.pkl", **given)
    convert.convert(tmp_path / "file.pkl", tmp_path / "out")
    return network, outer, sizes, load_json(tmp_path / "out" / "config.json")


@pytest.mark.parametrize("protocol", [3, 4])
@pytest.mark.parametrize("name", ["ddpm++", "ncsn++", "adm"])
def test_a_converted_checkpoint_is_the_same_network(tmp_path, name, protocol):
    network, outer, sizes, config = converted(tmp_path, name=name, protocol=protocol, label_dim=4)
    assert config["network_args"] == sizes
    assert config["precond_args"] == outer | {
        "sigma_min": 0.0,
        "sigma_max": "inf",
        "sigma_data": 0.5,
    }
    model = indis.models.load(f"edm:{tmp_path / 'out'}")
    for key, value in network.state_dict().items():
        assert torch.equal(model.network.state_dict()[key], value), key


@pytest.mark.parametrize("precond", list(lookalike_edm.CLASSES))
def test_all_preconditionings_and_arguments_by_place(tmp_path, precond):
    by_name = converted(tmp_path, precond=precond)[3]
    by_place = converted(tmp_path, precond=precond, by_place=True)[3]
    assert by_name["precond"] == precond
    assert by_name["precond_args"] == by_place["precond_args"]
    assert indis.models.load(f"edm:{tmp_path / 'out'}").precond.sigma_range


def test_the_averaged_network_is_taken_unless_the_raw_one_is_named(tmp_path):
    file = tmp_path / "file.pkl"
    lookalike_edm.write(file, key="net")
    with pytest.raises(ValueError) as error:
        convert.convert(file, tmp_path / "out")
    assert "has no network 'ema', but dataset_kwargs, loss_fn, net" in sentence(error)
    convert.convert(file, tmp_path / "out", "raw")
    assert load_json(tmp_path / "out" / "config.json")["net"] == "raw"


def test_files_of_older_numpy_are_read(tmp_path):
    file = tmp_path / "file.pkl"
    lookalike_edm.write(file, protocol=3)
    old = file.read_bytes().replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
    file.write_bytes(old)
    assert convert.convert(file, tmp_path / "out") > 0


def test_the_command_says_what_to_do_next(tmp_path, capsys):
    lookalike_edm.write(tmp_path / "file.pkl")
    words = ["convert", "edm", str(tmp_path / "file.pkl"), "--out", str(tmp_path / "out")]
    assert entry.run(words) == 0
    assert f"--model edm:{tmp_path / 'out'}" in capsys.readouterr().err.replace("\n", "")


class Evil:
    def __init__(self, function, *arguments):
        self.reduced = function, arguments

    def __reduce__(self):
        return self.reduced


def checkpoint(tensor_state):
    """The bytes of a checkpoint whose network holds what is given."""
    state = {"_parameters": tensor_state, "_buffers": {}, "_modules": {}}
    inner = Persistent("SongUNet", state, (), {"img_resolution": 16})
    whole = Persistent("EDMPrecond", {"_modules": {"model": inner}}, (16, 3), {})
    with published_names():
        return pickle.dumps({"ema": whole})


def torch_file(thing):
    """A file of torch's older format, as a tensor's storage is pickled."""
    file = io.BytesIO()
    torch.save(thing, file, _use_new_zipfile_serialization=False)
    return file.getvalue()


def enlarged_storage():
    """A storage of four numbers that says it has 2^33."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        small = torch_file(torch.arange(4.0)._typed_storage())
    place = small.rindex(b"K\x04N")  # the count in its description
    return small[:place] + b"\x8a\x05" + (2**33).to_bytes(5, "little") + small[place + 2 :]


def stacked(*parts):
    """A pickle of protocol 4 of these pieces."""
    return b"".join((b"\x80\x04", *parts, b"."))


def text(word):
    return b"\x8c" + bytes([len(word)]) + word.encode()


def named(module, name):
    return text(module) + text(name) + b"\x93"


def doubled(first, join, levels=40):
    """What holds one thing twice, which holds one thing twice, ...: 2^levels ways down."""
    steps = (b"0" + join % (b"h%c" % n, b"h%c" % n) + b"\x94" for n in range(levels))
    return first + b"\x94" + b"".join(steps)


def bombs():
    """Small files that take time or memory without end from a reader that trusts them."""
    tuples = doubled(b")N\x86", b"%s%s\x86")
    kept_late = doubled(b")N\x86", b"%s%s\x86N0")
    # A list is kept before it is filled.
    steps = (b"0]\x94(" + b"h%c" % n + b"h%c" % n + b"e" for n in range(40))
    lists = b"]\x94" + b"".join(steps)
    record = named("torch_utils.persistence", "_reconstruct_persistent_obj")
    parameter = named("torch._utils", "_rebuild_parameter")
    returned = doubled(b")N\x86", parameter + b"%s%s\x86\x85R")
    view = named("torch._utils", "_rebuild_tensor_v2")
    data = torch_file(torch.zeros(20_000)._typed_storage())
    flat = named("torch.storage", "_load_from_bytes") + b"B" + struct.pack("<I", len(data)) + data
    long, one = b"J" + struct.pack("<i", 20_000), b"K\x01"
    column = view + b"(h\x00K\x00" + long + one + b"\x86" + one + one + b"\x86tR\x940"
    row = view + b"(h\x00K\x00" + one + long + b"\x86" + one + one + b"\x86tR\x940"
    broadcast = view + b"(h\x00h\x01K\x02\x85h\x02\x85tR"
    multiples = (k * (2**61 - 1) for k in range(1, 100_001))
    numbers = b"".join(b"\x8a\x0b" + n.to_bytes(11, "little") + b"N" for n in multiples)
    kind = record + b"}(" + text("type") + b"h\x28" + text("class_name") + text("A") + b"u\x85R"
    dimensions = b"(" + b"\x8a\x08" + b"\xff" * 7 + b"\x0f"
    shape = dimensions + (b"\x8a\x08" + b"\xff" * 7 + b"\x0f") * 200_000 + b"t"
    steps = b"(" + b"K\x00" * 200_001 + b"t"
    return {
        "a thing taken twice": stacked(b"}", b")N\x86", b"2\x86" * 40, b"Ns"),
        "tuples that share": stacked(b"}(", tuples, b"Nu"),
        "tuples kept late": stacked(b"}(", kept_late, b"Nu"),
        "tuples through a parameter": stacked(b"}(", returned, b"Nu"),
        "numbers of one hash": stacked(b"}(", numbers, b"u"),
        "a kind of lists that share": stacked(lists, b"0", kind),
        "tensors for numbers": stacked(flat, b"\x85R\x940", column, row, broadcast),
        "many dimensions": stacked(flat, b"\x85R\x940", view, b"(h\x00K\x00", shape, steps, b"tR"),
        "a long name": stacked(b"X", struct.pack("<I", 10**7), b"a" * 10**7, text("x"), b"\x93"),
    }


def hostile(trace):
    """Files that must not be converted, by what they try; running code would touch ``trace``."""
    touch = f"open({trace!r}, 'w').close()"
    load = torch.storage._load_from_bytes
    view = torch._utils._rebuild_tensor_v2
    storage = torch.arange(4.0)._typed_storage()
    nested = Evil(os.system, f"touch {trace}")
    whole = checkpoint({"weight": torch.arange(4.0)})
    chain = b"\x80\x04\x8c\x08builtins\x8c\x07getattr\x93\x8c\x02os\x8c\x06system\x86R."
    return bombs() | {
        "os.system": pickle.dumps({"ema": nested}),
        "eval": pickle.dumps({"ema": Evil(eval, touch)}),
        "exec in a tensor": checkpoint({"weight": Evil(exec, touch)}),
        "getattr chain": chain,
        "nested torch.load": checkpoint({"weight": Evil(load, torch_file(nested))}),
        "nested zip": checkpoint({"weight": Evil(load, b"PK\x03\x04")}),
        "tensor beyond its storage": checkpoint({"w": Evil(view, storage, 0, (9,), (1,), 0, None)}),
        "tensor of one number": checkpoint(
            {"w": Evil(view, storage, 0, (2**40,), (0,), False, None)}
        ),
        "storage of gigabytes": checkpoint({"w": Evil(load, enlarged_storage())}),
        "deep recursion": b"\x80\x04" + b"]" * 200_000 + b"a" * 199_999 + b".",
        "nested keys": b"\x80\x04}" + b")" + b"\x85" * 19_990 + b"Ns.",
        "deeply nested keys": b"\x80\x04}" + b")" + b"\x85" * 1_000_000 + b"Ns.",
        "memo bomb": b"\x80\x04Nr\xff\xff\xff\x7f0N.",
        "declared gigabytes": b"\x80\x04\x8e" + (2**40).to_bytes(8, "little") + b"x.",
        "long number": b"\x80\x04\x8b" + (1000).to_bytes(4, "little") + b"\x7f" * 1000 + b".",
        "extension": b"\x80\x04\x82\x01.",
        "truncated": whole[: len(whole) // 2],
        "without its end": whole[:-1],
        "zip": b"PK\x03\x04" + whole,
        "text": b"<html>",
        "empty": b"",
        "a list": pickle.dumps([1, 2]),
        "without arguments": checkpoint({}),
    }


@pytest.mark.parametrize("name", sorted(hostile("trace")))
def test_hostile_files_are_refused_and_nothing_runs(tmp_path, capsys, name):
    trace = tmp_path / "trace"
    file = tmp_path / "file.pkl"
    file.write_bytes(hostile(str(trace))[name])
    before = contents(tmp_path)
    words = ["convert", "edm", str(file), "--out", str(tmp_path / "out")]
    assert entry.run(words) == 2
    said = capsys.readouterr().err
    assert str(file) in said and "Traceback" not in said
    assert said.count("\n") == 1 and len(said) < 1000, said
    assert contents(tmp_path) == before and not trace.exists()


def test_a_network_of_any_size_is_not_built_because_a_file_says_so(tmp_path):
    lookalike_edm.write(tmp_path / "file.pkl")
    content = pickles.read(tmp_path / "file.pkl")
    config, tensors = convert._recovered(content, "ema")
    for name, value in (("num_blocks", 10**9), ("channel_mult", [1] * 99), ("model_channels", 0)):
        changed = config | {"network_args": config["network_args"] | {name: value}}
        with pytest.raises(ValueError, match=f"^{name} of its network must be in 1"):
            convert._check(changed, tensors)
    convert.convert(tmp_path / "file.pkl", tmp_path / "out")
    record = load_json(tmp_path / "out" / "config.json")
    record["network_args"]["num_blocks"] = 10**9
    save_json(tmp_path / "out" / "config.json", record)
    with pytest.raises(ValueError, match="^num_blocks of its network must be in 1"):
        indis.models.load(f"edm:{tmp_path / 'out'}")


def test_tensors_that_are_not_the_network_s_are_refused(tmp_path):
    lookalike_edm.write(tmp_path / "file.pkl")
    config, tensors = convert._recovered(pickles.read(tmp_path / "file.pkl"), "ema")
    name = "map_layer0.weight"
    for bad, why in (
        (tensors[name][:1], "must be"),
        (torch.full_like(tensors[name], math.nan), "finite"),
    ):
        with pytest.raises(ValueError, match=f"^{name} .*{why}"):
            convert._check(config, tensors | {name: bad})


MEASURE = """
import sys
from pathlib import Path
import torch
from indis.models.edm import convert

def memory(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(name + ":"))

def attempt(path):
    try:
        convert.convert(Path(path), Path(path + ".out"))
    except ValueError:
        pass

attempt(sys.argv[1])  # what is loaded late is there from here on
before = memory("VmRSS")
for path in sys.argv[2:]:
    attempt(path)
print(memory("VmHWM") - before)
"""


def peak(*files):
    """The peak memory of converting files in a process of its own."""
    command = [sys.executable, "-c", MEASURE, *map(str, files)]
    run = subprocess.run(command, check=True, capture_output=True, text=True)
    return int(run.stdout)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's account")
def test_memory_stays_near_the_size_of_the_tensors(tmp_path):
    small, large = tmp_path / "small.pkl", tmp_path / "large.pkl"
    lookalike_edm.write(small)
    sizes = {"model_channels": 128, "channel_mult": [2, 2, 2], "num_blocks": 2}
    network, _, _ = lookalike_edm.write(large, **sizes)
    size = sum(4 * value.numel() for value in network.state_dict().values())
    assert size > 100e6
    assert peak(small, large) < 2.2 * size
    assert (tmp_path / "large.pkl.out" / "config.json").exists()


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's account")
def test_hostile_files_take_little_memory(tmp_path):
    files = []
    for number, data in enumerate(hostile(str(tmp_path / "trace")).values()):
        files.append(tmp_path / f"{number}.pkl")
        files[-1].write_bytes(data)
    lookalike_edm.write(tmp_path / "small.pkl")
    assert peak(tmp_path / "small.pkl", *files) < 100e6

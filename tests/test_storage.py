"""Files are whole or absent, and what comes back is what went in."""

import hashlib
import os
import pickle

import pytest
import torch
from safetensors.torch import save_file

from indis.sealed import pack_optimizer, unpack_optimizer
from indis.storage import (
    checksum,
    digest,
    load_json,
    load_tensors,
    save_json,
    save_tensors,
    write_aside,
)
from small_cases import contents, sentence


def failing(path):
    path.write_text("half of the ne")
    raise RuntimeError("the disk is full")


def test_a_failing_writer_leaves_the_old_file_and_no_temporary(tmp_path):
    path = tmp_path / "result.txt"
    path.write_text("old")
    with pytest.raises(RuntimeError, match="the disk is full"):
        write_aside(path, failing)
    assert contents(tmp_path) == {"result.txt": b"old"}


def test_a_failing_first_writer_leaves_nothing(tmp_path):
    with pytest.raises(RuntimeError):
        write_aside(tmp_path / "deeper" / "result.txt", failing)
    assert contents(tmp_path) == {}


def test_a_reader_sees_the_old_file_until_the_new_one_is_complete(tmp_path):
    path = tmp_path / "result.txt"
    path.write_text("old")
    seen = []

    def write(temporary):
        temporary.write_text("new")
        seen.append(path.read_text())

    write_aside(path, write)
    assert seen == ["old"]
    assert contents(tmp_path) == {"result.txt": b"new"}


def test_a_file_gets_the_permissions_that_the_umask_allows(tmp_path):
    old = os.umask(0o027)
    try:
        save_json(tmp_path / "a.json", 1)
    finally:
        os.umask(old)
    assert (tmp_path / "a.json").stat().st_mode & 0o777 == 0o640


def test_json_comes_back_and_not_a_number_is_refused(tmp_path):
    path = tmp_path / "a.json"
    value = {"b": [1, 2.5, None, "ü"], "a": {"deep": True}}
    save_json(path, value)
    assert load_json(path) == value
    assert list(load_json(path)) == ["b", "a"]
    for bad in (float("nan"), float("inf")):
        with pytest.raises(ValueError):
            save_json(path, {"loss": bad})
    assert load_json(path) == value


@pytest.mark.parametrize("raw", [b'{"a": 1', b"", b"\xff\xfe\x00"])
def test_damaged_json_is_named_in_one_sentence(tmp_path, raw):
    path = tmp_path / "a.json"
    path.write_bytes(raw)
    with pytest.raises(ValueError) as error:
        load_json(path)
    assert f"{path} is not valid JSON" in sentence(error)


def test_tensors_and_meta_come_back_bit_for_bit(tmp_path):
    grid = torch.arange(12.0).reshape(3, 4)
    tensors = {
        "transposed": grid.T,
        "double": torch.tensor([1 / 3], dtype=torch.float64),
        "half": torch.tensor([1.5, -2], dtype=torch.bfloat16),
        "whole": torch.tensor([2**40, -1]),
        "empty": torch.zeros(0, 2),
        "learned": torch.ones(2, requires_grad=True),
    }
    meta = {"steps": [1, 2], "name": "ü", "nothing": None}
    save_tensors(tmp_path / "a.safetensors", tensors, meta)
    back, header = load_tensors(tmp_path / "a.safetensors")
    assert header == meta
    assert back.keys() == tensors.keys()
    assert all(back[k].dtype == v.dtype and torch.equal(back[k], v) for k, v in tensors.items())


def test_disjoint_views_of_one_tensor_can_be_stored(tmp_path):
    whole = torch.arange(10.0)
    save_tensors(tmp_path / "a.safetensors", {"train": whole[:6], "heldout": whole[6:]})
    back, _ = load_tensors(tmp_path / "a.safetensors")
    assert back["train"].tolist() == [0, 1, 2, 3, 4, 5]
    assert back["heldout"].tolist() == [6, 7, 8, 9]


@pytest.mark.parametrize("keep", [0, 5, 40, -3])
def test_a_damaged_tensor_file_is_named_in_one_sentence(tmp_path, keep):
    path = tmp_path / "a.safetensors"
    save_tensors(path, {"x": torch.ones(100)})
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError) as error:
        load_tensors(path)
    assert sentence(error).startswith(f"{path} is damaged")


def test_a_header_that_is_not_json_counts_as_damage(tmp_path):
    path = tmp_path / "a.safetensors"
    save_file({"x": torch.ones(1)}, path, metadata={"meta": "{half"})
    with pytest.raises(ValueError) as error:
        load_tensors(path)
    assert sentence(error).startswith(f"{path} is damaged")


def test_a_missing_tensor_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere.safetensors does not exist"):
        load_tensors(tmp_path / "nowhere.safetensors")


def test_a_file_of_plain_safetensors_has_no_meta(tmp_path):
    save_file({"x": torch.ones(1)}, tmp_path / "a.safetensors")
    assert load_tensors(tmp_path / "a.safetensors")[1] is None


def test_checksums_are_sha256_and_digests_ignore_the_order_of_keys(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    assert checksum(tmp_path / "a") == hashlib.sha256(b"abc").hexdigest()
    assert digest({"a": 1, "b": [1, 2]}) == digest({"b": [1, 2], "a": 1})
    assert digest({"a": 1, "b": [1, 2]}) != digest({"a": 1, "b": [2, 1]})


def parameters():
    return [torch.nn.Parameter(torch.tensor([1.0, 2.0])), torch.nn.Parameter(torch.tensor([[3.0]]))]


def descend(optimizer, steps):
    for _ in range(steps):
        optimizer.zero_grad()
        sum((p**3).sum() for group in optimizer.param_groups for p in group["params"]).backward()
        optimizer.step()


def test_an_optimizer_goes_on_bit_for_bit_after_a_round_trip(tmp_path):
    straight, before, after = parameters(), parameters(), parameters()
    descend(torch.optim.Adam(straight, lr=0.1), 5)
    first = torch.optim.Adam(before, lr=0.1)
    descend(first, 3)
    save_tensors(tmp_path / "a.safetensors", pack_optimizer(first) | {"other": torch.ones(1)})
    second = torch.optim.Adam(after, lr=0.1)
    for new, old in zip(after, before, strict=True):
        new.data.copy_(old.data)
    unpack_optimizer(second, load_tensors(tmp_path / "a.safetensors")[0])
    descend(second, 2)
    assert all(torch.equal(a, b) for a, b in zip(after, straight, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(before, straight, strict=True))


def test_the_learning_rate_is_the_one_that_the_optimizer_was_built_with():
    first, second = (torch.optim.Adam(parameters(), lr=lr) for lr in (0.1, 0.3))
    descend(first, 1)
    unpack_optimizer(second, pack_optimizer(first))
    assert second.param_groups[0]["lr"] == 0.3


class Trap:
    """Its pickle would make a folder when it is executed."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("write", [0, 2, 5, "torch"])
def test_a_pickle_is_named_and_not_executed(tmp_path, write):
    path, sprung = tmp_path / "network.pkl", tmp_path / "sprung"
    if write == "torch":
        torch.save({"weight": Trap(sprung)}, path)
    else:
        path.write_bytes(pickle.dumps({"weight": Trap(sprung)}, protocol=write))
    with pytest.raises(ValueError, match="is a pickle, which is never executed") as error:
        load_tensors(path)
    assert str(path) in sentence(error) and "safetensors" in sentence(error)
    assert not sprung.exists()


@pytest.mark.parametrize("raw", [b"", b"no tensors", b"\x80", b"(", b"PK"])
def test_other_files_are_damaged_and_no_pickles(tmp_path, raw):
    path = tmp_path / "network.pkl"
    path.write_bytes(raw)
    with pytest.raises(ValueError, match="is damaged") as error:
        load_tensors(path)
    sentence(error)

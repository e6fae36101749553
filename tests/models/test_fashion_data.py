"""Fashion-MNIST's files: what is read from them, and what is said about damaged ones; pixels and
bytes."""

import gzip
import struct

import pytest
import torch

from indis.models.fashion_data import read
from indis.pixels import to_bytes, to_pixels
from small_cases import sentence


def idx(array, kind=8):
    sizes = struct.pack(f">{array.ndim}I", *array.shape)
    return bytes([0, 0, kind, array.ndim]) + sizes + array.numpy().tobytes()


IMAGES = torch.randint(
    0, 256, (5, 28, 28), generator=torch.Generator().manual_seed(0), dtype=torch.uint8
)
CLASSES = torch.tensor([3, 1, 9, 0, 3], dtype=torch.uint8)


@pytest.fixture
def data(tmp_path):
    """A data set of five images."""
    write(tmp_path, "images-idx3", gzip.compress(idx(IMAGES)))
    write(tmp_path, "labels-idx1", gzip.compress(idx(CLASSES)))
    return tmp_path


def write(folder, name, raw):
    (folder / f"t10k-{name}-ubyte.gz").write_bytes(raw)


def unreadable(folder, kind=ValueError):
    with pytest.raises(kind) as error:
        read("t10k", folder)
    return sentence(error)


def test_images_and_labels_are_read_from_their_files(data):
    images, labels = read("t10k", data)
    assert torch.equal(images, IMAGES[:, None])
    assert labels.tolist() == CLASSES.tolist() and labels.dtype == torch.int64


def test_a_missing_data_set_says_where_it_comes_from(data):
    with pytest.raises(FileNotFoundError) as error:
        read("train", data)
    assert "train-images-idx3-ubyte.gz is missing" in sentence(error)
    assert "dataset-fashion-mnist" in sentence(error)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda raw: gzip.compress(raw)[:-20], "is damaged"),
        (lambda raw: gzip.compress(raw)[:200], "is damaged"),
        (lambda raw: gzip.compress(raw)[:12] + b"\xff" * 40, "is damaged"),
        (lambda raw: raw, "is damaged"),
        (lambda raw: b"", "is not an IDX file"),
        (lambda raw: gzip.compress(raw[:-1]), "promises 3920 bytes, it holds 3919"),
        (lambda raw: gzip.compress(raw + b"\0"), "promises 3920 bytes, it holds 3921"),
        (lambda raw: gzip.compress(raw[:9]), "is damaged"),
        (lambda raw: gzip.compress(b"hello"), "is not an IDX file"),
        (lambda raw: gzip.compress(idx(IMAGES, kind=9)), "is not an IDX file of unsigned bytes"),
        (lambda raw: gzip.compress(idx(IMAGES[:4])), "not Fashion-MNIST"),
        (lambda raw: gzip.compress(idx(IMAGES[:, :14])), "not Fashion-MNIST"),
    ],
)
def test_a_damaged_file_is_named_in_one_sentence(data, damage, words):
    write(data, "images-idx3", damage(idx(IMAGES)))
    text = unreadable(data)
    assert words in text and str(data) in text


def test_pixels_span_minus_one_to_one_and_come_back_as_the_same_bytes():
    whole = torch.arange(256, dtype=torch.uint8)
    pixels = to_pixels(whole)
    assert pixels[[0, 255]].tolist() == [-1, 1]
    assert torch.equal(to_bytes(pixels), whole)

"""A model of the user's own is named by the function that returns it."""

import sys
import types

import pytest

from indis import models

SOURCE = """
from indis import Form, RectifiedFlow, Wrapped
value = 3

def make(width="2"):
    shape, schedule = (int(width),), RectifiedFlow()
    return Wrapped(lambda x, t, condition: x, schedule, shape, Form.DATA, name="mine")

def nothing():
    return None
"""


@pytest.fixture
def own(monkeypatch):
    module = types.ModuleType("own_models")
    exec(SOURCE, module.__dict__)
    monkeypatch.setitem(sys.modules, "own_models", module)


def test_a_function_without_arguments_is_called(own):
    assert models.load("own_models:make").shape == (2,)


def test_a_detail_after_a_second_colon_is_its_argument(own):
    assert models.load("own_models:make:5").shape == (5,)


@pytest.mark.parametrize(
    ("spec", "part"),
    [
        ("flux", "one of diffusers, edm, fashion, galaxies, toy or module:function, got 'flux'"),
        ("no_such_package.models:make", "there is no module 'no_such_package'"),
        (":make", "got ':make'"),
        ("..a:make", "got '..a:make'"),
        ("own_models:", "must name a function of own_models"),
        ("own_models:missing", "must name a function of own_models"),
        ("own_models:value", "must name a function of own_models"),
        ("own_models:nothing", "own_models:nothing returned a NoneType"),
    ],
)
def test_a_spec_that_names_no_model_is_refused(own, spec, part):
    with pytest.raises(ValueError, match="model must") as error:
        models.load(spec)
    assert part in str(error.value)


def test_the_name_of_an_own_model_is_not_known_before_it_is_loaded():
    assert models.name_of("own_models:make") is None
    assert models.name_of("toy:AB") == "toy-AB"

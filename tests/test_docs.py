"""The tables of README and docs/ are those of results/: none is out of date, and no page asks for
what there is not."""

import importlib.util
from pathlib import Path

import pytest

TOOL = Path(__file__).parent.parent / "tools" / "fill_docs.py"
spec = importlib.util.spec_from_file_location("fill_docs", TOOL)
fill_docs = importlib.util.module_from_spec(spec)
spec.loader.exec_module(fill_docs)


@pytest.mark.parametrize("page", fill_docs.PAGES, ids=lambda page: page.name)
def test_a_page_shows_the_numbers_of_the_results(page):
    text = page.read_text()
    assert fill_docs.filled(text) == text, f"{page.name} is behind results/: run `make docs`"


def test_every_table_stands_on_some_page():
    asked = {
        name for page in fill_docs.PAGES for _, name, _ in fill_docs.BLOCK.findall(page.read_text())
    }
    assert asked == set(fill_docs.TABLES)


def test_a_table_is_put_between_its_marks_and_nothing_else_changes(monkeypatch):
    monkeypatch.setitem(fill_docs.TABLES, "new", lambda: "| a |")
    text = "before\n<!-- table: new -->\nold\n<!-- end -->\nafter"
    filled = fill_docs.filled(text)
    assert filled == "before\n<!-- table: new -->\n\n| a |\n\n<!-- end -->\nafter"
    assert fill_docs.filled(filled) == filled
    with pytest.raises(KeyError):
        fill_docs.filled(text.replace("new", "unknown"))

"""Relative links and anchors of README.md, CONTRIBUTING.md and docs/ lead somewhere."""

import re
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
CODE = re.compile(r"^```.*?^```|`[^`\n]*`", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\]\(\s*([^)\s]+)[^)]*\)|<(?:img|a)\s[^>]*?(?:src|href)=\"([^\"]+)\"")
ELSEWHERE = re.compile(r"[a-z][a-z0-9+.-]*:|//")


def links(text: str) -> list[str]:
    """Return the targets of links and images outside of code."""
    found = LINK.findall(CODE.sub("", text))
    return [a or b for a, b in found if not ELSEWHERE.match(a or b)]


def anchors(text: str) -> set[str]:
    """Return the anchors that GitHub gives a page: of its headings, and those set by hand."""
    names, seen = set(re.findall(r"<a\s[^>]*?id=\"([^\"]+)\"", text)), dict[str, int]()
    without_blocks = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    for title in re.findall(r"^#{1,6} +(.+?)\s*#*$", without_blocks, flags=re.MULTILINE):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", title).lower()
        name = re.sub(r"[^\w\- ]", "", plain).replace(" ", "-")
        count = seen.get(name, 0)
        seen[name] = count + 1
        names.add(f"{name}-{count}" if count else name)
    return names


def broken(page: Path) -> list[str]:
    """Return the relative links of a page that lead nowhere."""
    text, missing = page.read_text(encoding="utf-8"), []
    for link in links(text):
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        if not target.exists() or (
            anchor and anchor not in anchors(target.read_text(encoding="utf-8"))
        ):
            missing.append(link)
    return missing


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_relative_links_lead_somewhere(page):
    assert broken(page) == []


def test_a_broken_link_is_found(tmp_path):
    page = tmp_path / "page.md"
    (tmp_path / "other.md").write_text("# One title\n\n## Twice\n\n## Twice\n\n```\n# none\n```\n")
    page.write_text(
        '## Here `code`, too\n<a id="by-hand"></a>\n'
        "[a](other.md#one-title) [b](other.md#twice-1) [c](#here-code-too) [d](#by-hand) "
        "[e](https://example.org/x#y) `[f](gone.md)` ![g](gone.png) [h](gone.md) [i](#gone) "
        "[j](other.md#none)\n"
    )
    assert broken(page) == ["gone.png", "gone.md", "#gone", "other.md#none"]


def test_files_and_names_of_the_paper_page_exist():
    text, package = (ROOT / "docs" / "paper.md").read_text(encoding="utf-8"), ROOT / "src" / "indis"
    code = re.findall(r"`([^`\s]+)`", text)
    files = [word for word in code if word.endswith((".py", "/"))]
    names = [word for word in code if re.fullmatch(r"[a-z_]+(\.\w+)+", word)]
    names = [name for name in names if not name.endswith((".py", ".safetensors"))]
    assert len(files) > 5
    assert len(names) > 5
    assert [file for file in files if not (package / file).exists()] == []
    for name in names:
        module, _, attribute = f"indis.{name}".rpartition(".")
        assert hasattr(import_module(module), attribute), name

"""The wording check of `make lint`: which words it finds, on which line, and which lines may keep them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import check_language
import pytest

Search = Callable[[str, str], list[tuple[int, str]]]

LIST = """
[avoid]
"gizmos?" = "device"
"by and by" = "later"

[[allow]]
path = "kept.py"
text = "quoted from the paper"
reason = "a quotation"
"""


@pytest.fixture
def found(tmp_path: Path) -> Search:
    words = tmp_path / "words.toml"
    words.write_text(LIST)
    patterns, exceptions = check_language.read_words(words)

    def search(path: str, text: str) -> list[tuple[int, str]]:
        entries = check_language.search(Path(path), text, patterns, exceptions)
        return [(entry.line, entry.word) for entry in entries]

    return search


@pytest.mark.parametrize(
    ("text", "line", "word"),
    [
        ("# a\n# Gizmos are sent.\n", 2, "Gizmos"),
        ("def test_a_gizmo_is_sent(): ...\n", 1, "gizmo"),
        ("x = 1\n# sent by\n#   and by\n", 2, "by # and by"),
        ('"""Sent by and\n    by."""\n', 1, "by and by"),
    ],
)
def test_words_are_found_in_prose_identifiers_and_across_lines(found: Search, text: str, line: int, word: str) -> None:
    assert found("a.py", text) == [(line, word)]


def test_parts_of_longer_words_are_not_found(found: Search) -> None:
    assert found("a.py", "gizmology, nearby and bygone\n") == []


def test_an_allowed_line_of_one_file_may_keep_its_word(found: Search) -> None:
    text = "# quoted from the paper: gizmo\n"
    assert found("kept.py", text) == []
    assert found("other.py", text) == [(1, "gizmo")]


def test_the_list_of_the_project_is_read_and_every_allowed_line_has_a_reason() -> None:
    patterns, exceptions = check_language.read_words(check_language.WORDS)
    assert patterns
    assert all(entry.reason for entry in exceptions)
    assert Path("Makefile") in set(check_language.tracked_files(check_language.ROOT, ["Makefile", "LICENSE"]))

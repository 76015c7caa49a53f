"""The reference of commands in the documents: every command and option of the program, in tables."""

from __future__ import annotations

from types import SimpleNamespace

import command_reference
import pytest
import typer.main

from telepresence.cli import app


def test_every_command_and_option_is_in_the_reference() -> None:
    text = command_reference.reference()
    for name, command in typer.main.get_command(app).commands.items():  # type: ignore[attr-defined]
        assert f"## `telepresence {name}`" in text
        for option in (word for parameter in command.params for word in parameter.opts if word.startswith("--")):
            assert f"`{option}" in text
    assert "[bold]" not in text
    assert "&#x27;" not in text


def test_only_the_page_of_commands_is_filled_and_it_must_have_the_marker() -> None:
    other = SimpleNamespace(file=SimpleNamespace(src_uri="install.md"))
    commands = SimpleNamespace(file=SimpleNamespace(src_uri=command_reference.PAGE))
    assert command_reference.on_page_markdown("text", page=other, config=None) == "text"
    filled = command_reference.on_page_markdown(f"before\n{command_reference.MARKER}\n", page=commands)
    assert filled.startswith("before\n## `telepresence run`")
    with pytest.raises(ValueError, match="lacks the line"):
        command_reference.on_page_markdown("text", page=commands)


def test_pipes_stay_in_their_cells() -> None:
    table = command_reference.as_tables("* `--device auto|cpu`: Where to compute [x]: a|b.\n")
    assert table.splitlines()[2] == "| `--device auto|cpu` | Where to compute \\[x\\]: a\\|b. |"

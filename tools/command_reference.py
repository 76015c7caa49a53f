"""MkDocs hook that fills docs/reference/commands.md with the options of every command, read from the program.

The place of the reference is the line ``<!-- commands -->`` of the page.
"""

from __future__ import annotations

import re
import subprocess
import sys
from html import unescape
from typing import Any, Final

PAGE: Final = "reference/commands.md"
MARKER: Final = "<!-- commands -->"
ENTRY: Final = re.compile(r"^\* `(.+?)`: (.*)$")
"""A line ``* `--option VALUE`: meaning`` of the Markdown that Typer writes."""


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """Replace the marker of the page of commands; called by MkDocs for each page."""
    if page.file.src_uri != PAGE:
        return markdown
    if MARKER not in markdown:
        raise ValueError(f"{PAGE} lacks the line {MARKER}")
    return markdown.replace(MARKER, reference())


def reference() -> str:
    """Markdown with a heading, the usage and tables of arguments and options for each command.

    subprocess.CalledProcessError if Typer cannot read the program.
    """
    command = [sys.executable, "-m", "typer", "telepresence.cli", "utils", "docs", "--name", "telepresence"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return as_tables(done.stdout.partition("\n## ")[2].join(["## ", ""]))


def as_tables(markdown: str) -> str:
    """Turn Typer's lists of arguments and options into tables with two columns."""
    lines: list[str] = []
    inside = False
    for line in markdown.splitlines():
        entry = ENTRY.match(line)
        if entry is not None:
            if not inside:
                lines += ["| name | meaning |", "|---|---|"]
            meaning = _plain(entry[2]).replace("|", "\\|")  # a pipe inside backticks does not end the cell
            lines.append(f"| `{unescape(entry[1])}` | {meaning} |")
        else:
            lines.append(line)
        inside = entry is not None
    return "\n".join(lines) + "\n"


def _plain(text: str) -> str:
    """A help text without Rich markup and HTML entities, with square brackets that Markdown takes for text."""
    text = re.sub(r"\[(bold|/bold|/)\]", "", unescape(text))
    return text.replace("[", "\\[").replace("]", "\\]")

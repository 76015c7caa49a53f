"""Check the wording of the project: ``python tools/check_language.py [PATH...]``.

Reports every word of the list in ``tools/language.toml`` with its plain replacement, in all text files that git tracks
or in the paths that are given, and exits with status 1 if there is one.  Documents, docstrings, comments, strings and
identifiers are all searched; a phrase may be broken over two lines of a comment.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parent.parent
WORDS: Final = Path(__file__).with_name("language.toml")
SUFFIXES: Final = {".css", ".cu", ".cuh", ".html", ".js", ".md", ".py", ".sh", ".toml", ".yml"}
"""Suffixes of the files that are searched."""

NAMES: Final = {"Makefile"}
"""Files without such a suffix that are searched too."""

GAP: Final = r"(?:\s|#|//|\*)+"
"""Regular expression of the space between two words of a phrase, which may be split over two comment lines."""


@dataclass(frozen=True)
class Found:
    """One word to avoid: where it was found, the line, and the plain replacement."""

    path: Path
    line: int
    word: str
    text: str
    replacement: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: avoid {self.word!r}: {self.replacement}\n    {self.text.strip()}"


@dataclass(frozen=True)
class AllowedLine:
    """A line of one file that may contain a word of the list: the path, a part of the line, and the reason."""

    path: str
    text: str
    reason: str


def read_words(path: Path) -> tuple[list[tuple[re.Pattern[str], str]], list[AllowedLine]]:
    """Patterns with their replacements, and the exceptions, of a word list in TOML."""
    content = tomllib.loads(path.read_text(encoding="utf-8"))
    patterns = [
        (re.compile(rf"(?<![^\W_])(?:{pattern.replace(' ', GAP)})(?![^\W_])", re.IGNORECASE), replacement)
        for pattern, replacement in content["avoid"].items()
    ]
    return patterns, [AllowedLine(**entry) for entry in content.get("allow", [])]


def tracked_files(root: Path, only: Sequence[str]) -> Iterator[Path]:
    """Paths, relative to ``root``, of the text files that git tracks or would add, limited to ``only`` if not empty."""
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "--", *only]
    done = subprocess.run(listed, cwd=root, capture_output=True, text=True, check=True)
    for line in sorted(set(done.stdout.splitlines())):
        path = Path(line)
        if (path.suffix in SUFFIXES or path.name in NAMES) and (root / path).is_file():
            yield path


def search(
    path: Path, text: str, patterns: Sequence[tuple[re.Pattern[str], str]], exceptions: Sequence[AllowedLine]
) -> Iterator[Found]:
    """Words to avoid in the text of one file."""
    allowed = [entry.text for entry in exceptions if entry.path == path.as_posix()]
    lines = text.splitlines()
    searched = text.replace("_", " ")
    for pattern, replacement in patterns:
        for match in pattern.finditer(searched):
            number = text.count("\n", 0, match.start())
            if not any(part in lines[number] for part in allowed):
                yield Found(path, number + 1, " ".join(match.group().split()), lines[number], replacement)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", nargs="*", help="files or folders to check; all of the project by default")
    wanted = parser.parse_args(arguments).paths
    patterns, exceptions = read_words(WORDS)
    own = WORDS.relative_to(ROOT)
    found = [
        entry
        for path in tracked_files(ROOT, wanted)
        if path != own
        for entry in search(path, (ROOT / path).read_text(encoding="utf-8"), patterns, exceptions)
    ]
    for entry in sorted(found, key=lambda entry: (entry.path, entry.line)):
        print(entry)
    if found:
        sys.exit(f"{len(found)} words to avoid: replace them, or allow the line in {own}")


if __name__ == "__main__":
    main()

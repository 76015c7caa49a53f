"""Size and naming rules of CONTRIBUTING.md: short modules and functions, one meaning for each class name."""

from __future__ import annotations

import ast
import subprocess
from collections import defaultdict
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MODULE_LINES = 450
FUNCTION_LINES = 80
LOOSE = {"__init__.py", "__main__.py", "cli.py", "client.py", "config.py"}
"""Modules that may stand directly in ``telepresence/``; all others belong into a folder."""

SHARED_NAMES: dict[str, str] = {}
"""Class names that may be defined more than once in the two packages, each with the reason."""


def _sources(*folders: str) -> list[Path]:
    listed = subprocess.run(["git", "ls-files", "--cached", "--others", "--exclude-standard", "--", *folders],
                            cwd=ROOT, capture_output=True, text=True, check=True)  # fmt: skip
    paths = (ROOT / line for line in sorted(set(listed.stdout.splitlines())))
    return [path for path in paths if path.suffix == ".py" and path.is_file()]


SOURCES = _sources("insta_runtime", "telepresence", "tools", "tests")
TREES = {path.relative_to(ROOT).as_posix(): ast.parse(path.read_text(encoding="utf-8")) for path in SOURCES}


def test_all_sources_are_found() -> None:
    assert len(TREES) > 300
    assert {"insta_runtime/types.py", "telepresence/cli.py", "tests/project/test_structure.py"} <= set(TREES)


def test_no_module_is_longer_than_450_lines() -> None:
    lengths = {path.relative_to(ROOT): len(path.read_text(encoding="utf-8").splitlines()) for path in SOURCES}
    assert not {str(path): lines for path, lines in lengths.items() if lines > MODULE_LINES}


def test_no_function_is_longer_than_80_lines() -> None:
    lengths = {
        f"{path}:{node.lineno} {node.name}": (node.end_lineno or node.lineno) - node.lineno + 1
        for path, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    assert not {name: lines for name, lines in lengths.items() if lines > FUNCTION_LINES}


@pytest.mark.parametrize("folders", [("insta_runtime", "telepresence"), ("tools",)], ids=["packages", "tools"])
def test_no_class_name_is_defined_twice(folders: tuple[str, ...]) -> None:
    places = defaultdict(list)
    for path, tree in TREES.items():
        if path.partition("/")[0] in folders:
            for node in ast.walk(tree):
                if isinstance(node, ast.ClassDef) and node.name not in SHARED_NAMES:
                    places[node.name].append(f"{path}:{node.lineno}")
    assert not {name: found for name, found in places.items() if len(found) > 1}


def test_every_exception_is_still_needed() -> None:
    names = [node.name for tree in TREES.values() for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    assert not [name for name in SHARED_NAMES if names.count(name) < 2]


def test_the_daemon_has_no_loose_modules() -> None:
    loose = {path.name for path in SOURCES if path.parent == ROOT / "telepresence"}
    assert loose <= LOOSE

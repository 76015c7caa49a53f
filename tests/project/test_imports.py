"""Import rules of docs/architecture.md, read from the source of every module: who may import whom, directly or not."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# Rooms (folders, or single modules of a package) from the lowest to the highest: each may import only rooms that stand
# before it. Rooms in one tuple are independent of each other.
RUNTIME: tuple[tuple[str, ...], ...] = (
    ("errors",),
    ("types",),
    ("geometry", "smoothstep", "files"),
    ("config", "avatar_file"),
    ("head",),
    ("evaluation", "warp"),
    ("field",),
    ("render", "avatar_migration"),
    ("torso",),
    ("learn",),
    ("native",),
    ("backends", "avatar", "tracked"),
)
DAEMON: tuple[tuple[str, ...], ...] = (
    ("runtime",),
    ("actor",),
    ("sources", "tracking", "drivers", "streaming", "outputs", "learning"),
    ("display",),
    ("config",),
    ("checkup", "client"),
    ("call",),
    ("measure",),
    ("commands",),
    ("cli",),
    ("__main__",),
)
STREAMING: tuple[tuple[str, ...], ...] = (
    ("audio", "video"),
    ("rtc",),
    ("http",),
    ("server",),
)

REFERENCE = ("head", "warp", "field", "render", "torso", "learn", "evaluation")
ALONE = {"insta_runtime.evaluation": {"errors", "types", "geometry", "smoothstep", "files", "config", "head"}}

RUNTIME_LIBRARIES = {"torch", "numpy", "safetensors"}
RUNTIME_LAZY = {"cupy", "tinycudann", "PIL"}

HEAVY = ("torch", "mediapipe", "av", "cv2", "aiortc", "aiohttp", "pygame", "zmq", "cupy", "PIL")


@dataclass(frozen=True)
class Import:
    """``module`` imports ``target`` (dotted), taking ``names`` from it; ``lazy`` if inside a function."""

    module: str
    target: str
    names: tuple[str, ...]
    lazy: bool
    line: int

    def __str__(self) -> str:
        return f"{self.module}:{self.line} imports {self.target}"


def _module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _modules(package: str) -> dict[str, Path]:
    return {_module_name(path): path for path in sorted((ROOT / package).rglob("*.py"))}


def _imports(module: str, path: Path) -> Iterator[Import]:
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]

    def walk(node: ast.AST, lazy: bool) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                for alias in child.names:
                    yield Import(module, alias.name, (), lazy, child.lineno)
            elif isinstance(child, ast.ImportFrom):
                base = child.module or ""
                if child.level:
                    parents = package.split(".")[: len(package.split(".")) - child.level + 1]
                    base = ".".join([*parents, *([child.module] if child.module else [])])
                for alias in child.names:
                    inner = f"{base}.{alias.name}"
                    known = inner in ALL
                    yield Import(module, inner if known else base, () if known else (alias.name,), lazy, child.lineno)
            else:
                yield from walk(child, lazy or isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda))

    return walk(ast.parse(path.read_text(encoding="utf-8")), False)


ALL = {**_modules("insta_runtime"), **_modules("telepresence"), **_modules("tools")}
IMPORTS = [found for module, path in ALL.items() for found in _imports(module, path)]
DIRECT: dict[str, set[str]] = {}
for _found in IMPORTS:
    if _found.target in ALL:
        DIRECT.setdefault(_found.module, set()).add(_found.target)


def _within(dotted: str, package: str) -> bool:
    return dotted == package or dotted.startswith(f"{package}.")


def _room(dotted: str, package: str) -> str | None:
    """The folder or module directly below ``package`` that ``dotted`` lies in; None outside and for the package."""
    return dotted.removeprefix(f"{package}.").partition(".")[0] if dotted.startswith(f"{package}.") else None


@cache
def _reached(module: str) -> dict[str, str]:
    """Modules that importing and running ``module`` can load, directly or not, each with its importer."""
    found: dict[str, str] = {}
    waiting = [module]
    while waiting:
        current = waiting.pop()
        for target in DIRECT.get(current, ()):
            if target not in found:
                found[target] = current
                waiting.append(target)
    return found


def _chain(module: str, target: str) -> str:
    """How ``module`` reaches ``target``, in words for a failed test."""
    found, steps = _reached(module), [target]
    while steps[-1] != module:
        steps.append(found[steps[-1]])
    return " <- ".join(steps)


def _out_of_order(package: str, order: tuple[tuple[str, ...], ...]) -> list[str]:
    """Imports inside ``package``, direct or not, that point to a later room or to a neighbour in the same tuple."""
    level = {room: number for number, rooms in enumerate(order) for room in rooms}
    wrong = []
    for module in ALL:
        importer = _room(module, package)
        if importer not in level:
            continue
        for target in _reached(module):
            imported = _room(target, package)
            if imported is None or imported == importer or imported not in level:
                continue
            if level[imported] >= level[importer]:
                wrong.append(_chain(module, target))
    return wrong


def test_the_walk_sees_the_project() -> None:
    assert len(ALL) > 30
    assert any(found.module == "telepresence.config" and found.target == "insta_runtime.config" for found in IMPORTS)
    assert any(found.lazy for found in IMPORTS)
    assert "insta_runtime.errors" in _reached("telepresence.cli")


@pytest.mark.parametrize(("package", "order"), [("insta_runtime", RUNTIME), ("telepresence", DAEMON)])
def test_every_room_has_its_place_in_the_order(package: str, order: tuple[tuple[str, ...], ...]) -> None:
    rooms = {room for module in ALL if (room := _room(module, package)) is not None}
    assert rooms == {room for level in order for room in level}


def test_nothing_imports_tools() -> None:
    wrong = [str(found) for found in IMPORTS if _within(found.target, "tools") and not _within(found.module, "tools")]
    assert not wrong, wrong


def test_the_runtime_knows_nothing_of_the_daemon_and_needs_three_libraries() -> None:
    wrong = []
    for found in IMPORTS:
        if not _within(found.module, "insta_runtime"):
            continue
        top = found.target.partition(".")[0]
        allowed = top in sys.stdlib_module_names or top in {"insta_runtime", *RUNTIME_LIBRARIES}
        if not allowed and not (found.lazy and top in RUNTIME_LAZY):
            wrong.append(str(found))
    assert not wrong, wrong


def test_inside_the_runtime_imports_point_up_the_pipeline() -> None:
    wrong = _out_of_order("insta_runtime", RUNTIME)
    assert not wrong, wrong


def test_the_torch_reference_reaches_no_native_code() -> None:
    wrong = [
        _chain(module, target)
        for module in ALL
        if _room(module, "insta_runtime") in REFERENCE
        for target in _reached(module)
        if _within(target, "insta_runtime.native")
    ]
    assert not wrong, wrong


@pytest.mark.parametrize("package", sorted(ALONE))
def test_rooms_that_stand_alone_reach_little_else(package: str) -> None:
    wrong = [
        _chain(module, target)
        for module in ALL
        if _within(module, package)
        for target in _reached(module)
        if not _within(target, package) and _room(target, "insta_runtime") not in {None, *ALONE[package]}
    ]
    assert not wrong, wrong


def test_the_stages_of_the_daemon_do_not_import_each_other_or_the_wiring() -> None:
    wrong = [line for line in _out_of_order("telepresence", DAEMON) if not _is_settings(line)]
    assert not wrong, wrong


def _is_settings(chain: str) -> bool:
    """Whether a chain ends in the settings of a stage, which the configuration of the whole program is made of."""
    return chain.split(" <- ")[0].rpartition(".")[2].endswith("settings")


def test_the_rooms_of_the_stream_import_each_other_in_one_direction() -> None:
    wrong = _out_of_order("telepresence.streaming", STREAMING)
    assert not wrong, wrong


def test_commands_are_imported_by_the_command_line_alone() -> None:
    wrong = [
        str(found)
        for found in IMPORTS
        if _within(found.target, "telepresence.commands")
        and not (_within(found.module, "telepresence.commands") or found.module == "telepresence.cli")
    ]
    assert not wrong, wrong


def test_private_names_stay_in_their_module() -> None:
    wrong = [
        f"{found} ({name})"
        for found in IMPORTS
        for name in found.names
        if name.startswith("_") and not name.startswith("__") and found.target in ALL
    ]
    assert not wrong, wrong


def test_device_code_is_no_package() -> None:
    assert not list((ROOT / "cuda").rglob("*.py"))


@pytest.mark.parametrize(
    "statement",
    [
        "import telepresence.cli",
        "import telepresence.config",
        "import telepresence.call.daemon",
        "import insta_runtime.types, insta_runtime.config, insta_runtime.errors",
        "from telepresence.cli import run_command; run_command(['fit', '--help'])",
    ],
)
def test_importing_is_cheap(statement: str) -> None:
    heavy = HEAVY if "daemon" not in statement else ("mediapipe", "cv2", "pygame", "cupy")
    program = f"{statement}\nimport sys\nsys.stderr.write(' '.join(m for m in {heavy!r} if m in sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stderr == ""

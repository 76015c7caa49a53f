"""Who may import whom: the direction of docs/architecture.md, read from the source of every module."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# The order in which a frame passes through the runtime; each imports only what stands before it.
RUNTIME = (
    *("errors", "types", "geometry", "config", "avatar_file", "compilers", "kernels"),
    *("head", "warp", "field", "render", "torso", "learn", "constants", "backends", "avatar", "tracked"),
)
STAGES = ("sources", "tracking", "drivers", "streaming", "outputs", "learning")
# May import stages; no stage imports them.
WIRING = (
    *("daemon", "controls", "course", "keeper", "outlets", "driving", "people", "person", "sitter"),
    *("status", "metrics", "display", "rehearsal"),
    *("client", "checkup", "commands", "cli", "__main__"),
)

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


def _part(dotted: str) -> str | None:
    """The folder or module of a package that ``dotted`` lies in; None for the package itself."""
    parts = dotted.split(".")
    return parts[1] if len(parts) > 1 else None


def _within(dotted: str, package: str) -> bool:
    return dotted == package or dotted.startswith(f"{package}.")


def test_the_walk_sees_the_project() -> None:
    assert len(ALL) > 30
    assert any(found.module == "telepresence.cli" and found.target == "telepresence.config" for found in IMPORTS)
    assert any(found.lazy for found in IMPORTS)


def test_nothing_imports_tools() -> None:
    wrong = [str(found) for found in IMPORTS if _within(found.target, "tools")]
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
    wrong = []
    for found in IMPORTS:
        if not (_within(found.module, "insta_runtime") and _within(found.target, "insta_runtime")):
            continue
        importer, imported = _part(found.module), _part(found.target)
        if importer is None:
            wrong.append(f"{found}: importing the package must cost nothing")
        elif imported is None:
            continue
        elif importer not in RUNTIME or imported not in RUNTIME:
            wrong.append(f"{found}: not in the order of docs/architecture.md")
        elif RUNTIME.index(imported) > RUNTIME.index(importer):
            wrong.append(f"{found}: {imported} comes after {importer}")
    assert not wrong, wrong


def test_the_stages_of_the_daemon_do_not_import_each_other_or_the_wiring() -> None:
    wrong = []
    for found in IMPORTS:
        importer, imported = _part(found.module), _part(found.target)
        if not (_within(found.module, "telepresence") and _within(found.target, "telepresence")):
            continue
        if importer in STAGES and (imported in (*WIRING, "config") or (imported in STAGES and imported != importer)):
            wrong.append(str(found))
    assert not wrong, wrong


def test_only_the_wiring_imports_stages() -> None:
    """What every stage builds on (frames, mailbox, clock ...) knows no stage; config.py composes their settings."""
    wrong = []
    for found in IMPORTS:
        if not (_within(found.module, "telepresence") and _within(found.target, "telepresence")):
            continue
        importer, imported = _part(found.module), _part(found.target)
        settings = importer == "config" and found.target.endswith(".settings")
        if imported in STAGES and importer not in (*STAGES, *WIRING) and not settings:
            wrong.append(str(found))
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

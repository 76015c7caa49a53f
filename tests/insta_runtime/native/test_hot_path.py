"""The code of a frame and of a training step neither waits for the device nor allocates: checked in its source.

The check starts at the functions of `HOT` and follows calls of methods of the same class and of functions of the same
module, except those of `SETUP`, which run once.  `ALLOWED` lists the exceptions with their reasons.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

HOT = {
    "insta_runtime/native/kernels.py": [
        *("Kernels.bind", "Kernels.launch", "BoundLaunch.__call__", "Graph.__call__"),
        *("_HostModule.bind", "_HostModule._launch", "_CudaModule.bind", "_Driver.launch"),
    ],
    "insta_runtime/native/posing.py": ["PosedHeads.run", "PosedHeads.rasterise"],
    "insta_runtime/native/field.py": ["PackedField.load", "PackedField.pack"],
    "insta_runtime/native/sampling.py": ["PackedSamples.run"],
    "insta_runtime/native/canvas.py": [
        "Canvas.draw",
        "Canvas.next_slot",
        "Canvas._fused.render",
        "Canvas._unfused.render",
    ],
    "insta_runtime/native/renderer.py": ["NativeRenderer.frame"],
    "insta_runtime/native/trainer.py": [
        *("NativeTrainer.step", "NativeTrainer._launch_step", "NativeTrainer._launch_occupancy_update"),
    ],
    "insta_runtime/native/step_io.py": ["StepInputs.send", "StepResults.on_step_queued", "StepResults.newest"],
    "insta_runtime/native/training_poses.py": ["PerStepPoses.pose"],
}

SETUP = {
    "Kernels._module": "compiles or loads a module at its first launch",
    "Graph._record": "once for each graph",
    "NativeRenderer._canvas": "once for each frame size",
    "NativeTrainer._prepare_steps": "once, at the first image",
    "NativeTrainer._pose_slot": "once for each image",
}

ALLOWED = {
    ("PosedHeads.rasterise", "empty"): "once for each image size",
    ("NativeRenderer.frame", "numpy"): "a view of pinned host memory",
    (
        "NativeRenderer._collect",
        "synchronize",
    ): "waits, as documented, while all slots of the ring hold frames that were not fetched",
    ("NativeRenderer._advance_crossfade", "where"): "writes into an existing tensor",
    ("NativeRenderer._collect", "tolist"): "pinned host memory, after it has arrived",
    ("StepInputs.send", "numpy"): "a view of pinned host memory",
}

WAITS = {"item", "cpu", "tolist", "numpy", "nonzero", "argwhere", "masked_select", "unique", "synchronize"}
COPIES = {"clone", "cuda", "to", "pin_memory", "repeat", "contiguous"}
NEW = {
    *("empty", "zeros", "ones", "full", "tensor", "as_tensor", "arange", "linspace", "eye", "cat", "stack", "where"),
    *("rand", "randn", "randint", "randperm", "empty_like", "zeros_like", "ones_like", "full_like", "rand_like"),
}


@dataclass
class Module:
    """The functions of a source file by qualified name, nested ones included."""

    text: str
    functions: dict[str, ast.FunctionDef] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._enter(ast.parse(self.text), "")

    def _enter(self, node: ast.AST, prefix: str) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.FunctionDef):
                self.functions[prefix + child.name] = child
            inner = f"{prefix}{child.name}." if isinstance(child, ast.FunctionDef | ast.ClassDef) else prefix
            self._enter(child, inner)

    def reached(self, names: list[str]) -> dict[str, ast.FunctionDef]:
        """The functions ``names`` and those of the module that they call, without those of `SETUP`."""
        found: dict[str, ast.FunctionDef] = {}
        waiting = list(names)
        while waiting:
            name = waiting.pop()
            if name in found or name in SETUP:
                continue
            found[name] = self.functions[name]
            waiting += self._called(name)
        return found

    def _called(self, name: str) -> Iterator[str]:
        owner = name.partition(".")[0]
        for node in ast.walk(self.functions[name]):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "self":
                called = f"{owner}.{node.attr}"
            elif isinstance(node, ast.Name):
                called = node.id
            else:
                continue
            if called in self.functions:
                yield called


def offences(function: ast.FunctionDef) -> Iterator[str]:
    """Operations in the body of ``function`` that wait, copy, allocate, or select elements by a mask."""
    for node in ast.walk(function):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            of_torch = isinstance(node.func.value, ast.Name) and node.func.value.id == "torch"
            if node.func.attr in WAITS | COPIES or (of_torch and node.func.attr in NEW):
                yield node.func.attr
        elif isinstance(node, ast.Subscript):
            chosen = node.slice
            compared = isinstance(chosen, ast.Compare | ast.BoolOp)
            inverted = isinstance(chosen, ast.UnaryOp) and isinstance(chosen.op, ast.Invert)
            named = isinstance(chosen, ast.Name) and any(word in chosen.id for word in ("mask", "valid", "keep", "hit"))
            if compared or inverted or named:
                yield "mask"


@pytest.mark.parametrize("path", HOT)
def test_the_hot_path_neither_waits_nor_allocates(path: str, root: Path) -> None:
    module = Module((root / path).read_text(encoding="utf-8"))
    found = {(name, what) for name, function in module.reached(HOT[path]).items() for what in offences(function)}
    assert not {f"{name}: {what}" for name, what in found - set(ALLOWED)}


def test_every_exception_is_needed(root: Path) -> None:
    modules = {path: Module((root / path).read_text(encoding="utf-8")) for path in HOT}
    known = {name for module in modules.values() for name in module.functions}
    assert set(SETUP) <= known
    found = {
        (name, what)
        for path, module in modules.items()
        for name, function in module.reached(HOT[path]).items()
        for what in offences(function)
    }
    assert set(ALLOWED) <= found


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ("x.item()", "item"),
        ("x.cpu()", "cpu"),
        ("x.tolist()", "tolist"),
        ("y = x[x > 0]", "mask"),
        ("y = x[~outside]", "mask"),
        ("y = x[mask]", "mask"),
        ("torch.nonzero(x)", "nonzero"),
        ("torch.cuda.synchronize()", "synchronize"),
        ("y = torch.zeros(3)", "zeros"),
        ("y = self.helper()", "empty"),
    ],
)
def test_the_walk_sees(line: str, what: str) -> None:
    hot = f"    def hot(self, x, mask):\n        {line}\n"
    module = Module(f"class A:\n{hot}\n    def helper(self):\n        return torch.empty(3)\n")
    assert [found for function in module.reached(["A.hot"]).values() for found in offences(function)] == [what]

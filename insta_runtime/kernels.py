"""Device code: reads `cuda/`, compiles it at first use, launches it with checked arguments.

The only module that compiles or launches.  One source serves two machines: NVRTC compiles it for an NVIDIA GPU, the
host's C++ compiler for a CPU (cuda/platform.cuh).  A kernel's signature and the structs it takes are read from the
source, so that Python passes exactly what is declared there: wrong types, devices or layouts raise TypeError.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch

Constant = int | float | tuple[int, ...]

_SCALARS: dict[str, Any] = {"int": ctypes.c_int32, "uint": ctypes.c_uint32, "float": ctypes.c_float}
_ELEMENTS = {
    "float": torch.float32,
    "int": torch.int32,
    "uint": torch.int32,  # torch has no full support for uint32: the bits count
    "byte": torch.uint8,
    "unsigned long long": torch.int64,
    "half": torch.float16,
}


def source_folder() -> Path:
    """Where the device code lies: in the installed package, or at the root of a checkout."""
    here = Path(__file__).resolve().parent
    packaged = here / "cuda"
    return packaged if packaged.is_dir() else here.parent / "cuda"


@dataclass(frozen=True)
class Parameter:
    """One declared parameter or field: C type without const, name, and whether it is a pointer."""

    type: str
    name: str
    pointer: bool


@dataclass(frozen=True)
class Signature:
    """A kernel as declared: its module (the .cu file's stem), parameters, and threads a block."""

    name: str
    module: str
    threads: int
    parameters: tuple[Parameter, ...]


@dataclass(frozen=True)
class Sources:
    """All device code: text by file name, kernels by name, structs by name."""

    text: dict[str, str]
    kernels: dict[str, Signature]
    structs: dict[str, tuple[Parameter, ...]]

    def closure(self, file: str) -> list[str]:
        """``file`` and every file that it includes, each once."""
        found = [file]
        for name in found:
            found += [inner for inner in _INCLUDE.findall(self.text[name]) if inner not in found]
        return found


_COMMENT = re.compile(r"//[^\n]*")
_INCLUDE = re.compile(r'^#include "([^"]+)"', re.MULTILINE)
_KERNEL = re.compile(r"^KERNEL\((\w+)\)\s*(\w+)\s*\(([^)]*)\)", re.MULTILINE)
_STRUCT = re.compile(r"^struct\s+(\w+)\s*\{([^}]*)\};", re.MULTILINE)
_PARAMETER = re.compile(r"^(?:const\s+)?([\w ]+?)\s*(\*?)\s*(?:__restrict__\s+)?(\w+)$")


@cache
def read_sources() -> Sources:
    """The device code, read once."""
    folder = source_folder()
    text = {path.name: path.read_text(encoding="utf-8") for path in sorted(folder.glob("*.cu*"))}
    kernels: dict[str, Signature] = {}
    structs: dict[str, tuple[Parameter, ...]] = {}
    for name, code in text.items():
        bare = _COMMENT.sub("", code)
        if name == "layout.cuh":
            for struct, body in _STRUCT.findall(bare):
                structs[struct] = tuple(_parameter(field) for field in body.split(";") if field.strip())
        for threads, kernel, body in _KERNEL.findall(bare):
            parameters = tuple(_parameter(item) for item in body.split(","))
            count = int(threads) if threads.isdigit() else int(_defined(threads, bare))
            kernels[kernel] = Signature(kernel, name.partition(".")[0], count, parameters)
    return Sources(text, kernels, structs)


def _defined(name: str, code: str) -> str:
    found = re.search(rf"#define\s+{name}\s+(\d+)", code)
    if found is None:
        raise ValueError(f"{name} must be a plain number or a #define of one in the same file")
    return found.group(1)


def _parameter(text: str) -> Parameter:
    found = _PARAMETER.match(" ".join(text.split()))
    if found is None:
        raise ValueError(f"cannot read the declaration {text!r}")
    return Parameter(found.group(1).removeprefix("const ").strip(), found.group(3), found.group(2) == "*")


@cache
def _structure(name: str) -> type[ctypes.Structure]:
    """The C struct ``name`` of layout.cuh as ctypes sees it."""
    fields = [
        (p.name, ctypes.c_void_p if p.pointer else _SCALARS[p.type]) for p in read_sources().structs[name]
    ]
    return type(name, (ctypes.Structure,), {"_fields_": fields})


class Struct:
    """A struct of layout.cuh, filled from tensors and numbers; keeps its tensors alive."""

    def __init__(self, kernels: Kernels, name: str, values: Mapping[str, torch.Tensor | float | None]) -> None:
        fields = read_sources().structs[name]
        if set(values) != {field.name for field in fields}:
            raise TypeError(f"{name} takes {[f.name for f in fields]}, not {list(values)}")
        self.name, self.tensors = name, dict(values)
        self.value = _structure(name)(*(kernels.checked(field, values[field.name]) for field in fields))


class Kernels:
    """Compiled device code on one device.

    Attributes:
        device: where tensors live. storage: dtype of weights as kernels read them.
    """

    def __init__(self, device: torch.device, constants: Mapping[str, Constant]) -> None:
        self.device = device
        self.constants = dict(constants)
        self.storage = torch.float16 if device.type == "cuda" else torch.float32
        self._libraries: dict[str, ctypes.CDLL] = {}

    def struct(self, name: str, **values: torch.Tensor | float | None) -> Struct:
        """The struct ``name`` of layout.cuh; a pointer is a contiguous tensor of the declared type, or None."""
        return Struct(self, name, values)

    def launch(self, name: str, *arguments: Any, items: int) -> None:
        """Run a kernel over ``items`` items (threads; 32 times the packets for a kernel of packets).

        Raises TypeError if an argument is not what the kernel's declaration says.
        """
        signature = read_sources().kernels[name]
        if len(arguments) != len(signature.parameters):
            raise TypeError(f"{name} takes {len(signature.parameters)} arguments, not {len(arguments)}")
        values = [self.checked(p, a) for p, a in zip(signature.parameters, arguments, strict=True)]
        function = getattr(self._library(signature.module), name)
        function.argtypes = [type(value) for value in values]
        function.restype = None
        function(*values)

    def checked(self, parameter: Parameter, value: Any) -> Any:
        """``value`` as the ctypes value that ``parameter`` declares."""
        if isinstance(value, Struct):
            if parameter.pointer or value.name != parameter.type:
                raise TypeError(f"{parameter.name} is a {parameter.type}, not a {value.name}")
            return value.value
        if not parameter.pointer:
            if isinstance(value, torch.Tensor) or (parameter.type != "float" and not isinstance(value, int)):
                raise TypeError(f"{parameter.name} is a {parameter.type}, not {value!r}")
            return _SCALARS[parameter.type](value)
        if value is None:
            return ctypes.c_void_p(None)
        wanted = self.storage if parameter.type == "storage_t" else _ELEMENTS[parameter.type]
        if value.dtype != wanted or not value.is_contiguous() or value.device.type != self.device.type:
            raise TypeError(
                f"{parameter.name} is a contiguous array of {wanted} on {self.device}, not "
                f"{value.dtype} {tuple(value.shape)} on {value.device}"
            )
        return ctypes.c_void_p(value.data_ptr())

    def _library(self, module: str) -> ctypes.CDLL:
        if module not in self._libraries:
            self._libraries[module] = _host_library(module, self._defines(module))
        return self._libraries[module]

    def _defines(self, module: str) -> tuple[str, ...]:
        """-D options for the constants that the module's code speaks of."""
        sources = read_sources()
        words = set(re.findall(r"\w+", " ".join(sources.text[name] for name in sources.closure(f"{module}.cu"))))
        return tuple(f"-D{name}={_literal(value)}" for name, value in sorted(self.constants.items()) if name in words)


def _literal(value: Constant) -> str:
    if isinstance(value, tuple):
        return "{" + ",".join(map(str, value)) + "}"
    return f"{value!r}f" if isinstance(value, float) else str(value)


def _host_library(module: str, defines: tuple[str, ...]) -> ctypes.CDLL:
    sources = read_sources()
    options = ["-std=c++17", "-O3", "-march=native", "-fopenmp", "-fPIC", "-shared", "-fno-math-errno",
               "-fno-trapping-math", "-fno-signed-zeros", "-fassociative-math", "-freciprocal-math", "-Wall", "-Wno-unknown-pragmas", "-Wno-unused-function"]
    digest = hashlib.sha256(repr((options, defines)).encode())
    for name in sources.closure(f"{module}.cu"):
        digest.update(sources.text[name].encode())
    folder = Path(os.environ.get("TELEPRESENCE_KERNEL_CACHE", Path.home() / ".cache" / "telepresence" / "kernels"))
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"{module}-{digest.hexdigest()[:24]}.so"
    if not target.exists():
        part = target.with_suffix(f".{os.getpid()}")
        subprocess.run(
            ["g++", *options, *defines, "-x", "c++", str(source_folder() / f"{module}.cu"), "-o", str(part)],
            check=True,
        )
        part.replace(target)
    return ctypes.CDLL(str(target))

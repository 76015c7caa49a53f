"""Device code: reads `cuda/`, compiles it at first use, launches it with checked arguments.

The only module that launches.  One source serves two machines: NVRTC compiles it for an NVIDIA GPU, the host's C++
compiler for a CPU (cuda/platform.cuh).  A kernel's signature and the structs it takes are read from the source, so
that Python passes exactly what is declared there: wrong types, devices or layouts raise TypeError.

On a GPU everything runs on torch's current stream of the calling thread, may be recorded into a CUDA graph, and
neither waits for the device nor allocates.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import re
import threading
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, cached_property, partial
from pathlib import Path
from typing import Any

import torch

from insta_runtime.native.compilers import Artifact, Compiler, HostCompiler, Nvrtc, NvrtcCompiler, Program, build, find
from insta_runtime.native.compilers import KernelError as KernelError  # callers of kernels need not know the compilers

Constant = int | float | tuple[int, ...]

_BLOCKS_PER_PROCESSOR = 32  # kernels stride over the rest: more blocks would only wait

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
    here = Path(__file__).resolve().parents[1]
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


class Sources:
    """The device code of a folder: ``text`` by file name, ``kernels`` and ``structs`` (of layout.cuh) by name."""

    def __init__(self, folder: Path) -> None:
        self.text = {path.name: path.read_text(encoding="utf-8") for path in sorted(folder.glob("*.cu*"))}
        self.kernels: dict[str, Signature] = {}
        self.structs: dict[str, tuple[Parameter, ...]] = {}
        for name, code in self.text.items():
            bare = _COMMENT.sub("", code)
            if name == "layout.cuh":
                for struct, body in _STRUCT.findall(bare):
                    self.structs[struct] = tuple(_parameter(field) for field in body.split(";") if field.strip())
            for threads, kernel, body in _KERNEL.findall(bare):
                parameters = tuple(_parameter(item) for item in body.split(","))
                count = int(threads) if threads.isdigit() else int(_defined(threads, bare))
                if kernel in self.kernels:
                    raise ValueError(f"{name} and {self.kernels[kernel].module}.cu both declare {kernel}")
                self.kernels[kernel] = Signature(kernel, name.partition(".")[0], count, parameters)
        self.structures = {
            name: type(name, (ctypes.Structure,), {"_fields_": [(f.name, _c_type(f)) for f in fields]})
            for name, fields in self.structs.items()
        }

    @property
    def modules(self) -> list[str]:
        """The modules that hold kernels."""
        return sorted({signature.module for signature in self.kernels.values()})

    def closure(self, file: str) -> list[str]:
        """``file`` and every file that it includes, each once."""
        found = [file]
        for name in found:
            found += [inner for inner in _INCLUDE.findall(self.text[name]) if inner not in found]
        return found

    def program(self, module: str, constants: Mapping[str, Constant]) -> Program:
        """``module`` with those of the constants that its code speaks of."""
        files = {name: self.text[name] for name in self.closure(f"{module}.cu")}
        words = set(re.findall(r"\w+", " ".join(files.values())))
        spoken = sorted(set(constants) & words)
        return Program(module, files, tuple(f"-D{name}={_literal(constants[name])}" for name in spoken))


_COMMENT = re.compile(r"//[^\n]*")
_INCLUDE = re.compile(r'^#include "([^"]+)"', re.MULTILINE)
_KERNEL = re.compile(r"^KERNEL\((\w+)(?:, \w+)?\)\s*(\w+)\s*\(([^)]*)\)", re.MULTILINE)
_STRUCT = re.compile(r"^struct\s+(\w+)\s*\{([^}]*)\};", re.MULTILINE)
_PARAMETER = re.compile(r"^(?:const\s+)?([\w ]+?)\s*(\*?)\s*(?:__restrict__\s+)?(\w+)$")


@cache
def read_sources() -> Sources:
    """The device code of the product, read once."""
    return Sources(source_folder())


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


def _c_type(declared: Parameter) -> Any:
    return ctypes.c_void_p if declared.pointer else _SCALARS[declared.type]


def _literal(value: Constant) -> str:
    if isinstance(value, tuple):
        return "{" + ",".join(map(_literal, value)) + "}"
    return f"{value!r}f" if isinstance(value, float) else str(int(value))


class Struct:
    """A struct of layout.cuh, filled from tensors and numbers; keeps its tensors alive."""

    def __init__(self, kernels: Kernels, name: str, values: Mapping[str, torch.Tensor | float | None]) -> None:
        fields = kernels.sources.structs[name]
        if set(values) != {field.name for field in fields}:
            raise TypeError(f"{name} takes {[f.name for f in fields]}, not {list(values)}")
        self.name, self.device, self.tensors = name, kernels.device, dict(values)
        self.value = kernels.sources.structures[name](*(kernels.checked(field, values[field.name]) for field in fields))

    def tensor(self, name: str) -> torch.Tensor:
        """What the pointer ``name`` points at."""
        tensor = self.tensors[name]
        assert isinstance(tensor, torch.Tensor)
        return tensor


class Call:
    """A checked launch, to be repeated: ``call()``.  Keeps what it passes alive; reads tensors as they are then."""

    def __init__(self, launch: Callable[[], None], arguments: tuple[Any, ...]) -> None:
        self._launch, self._arguments = launch, arguments

    def __call__(self) -> None:
        self._launch()


class Kernels:
    """Compiled device code on one device.

    Attributes:
        device: where tensors live. storage: dtype of weights as kernels read them. constants: what is compiled in.
        sources: the device code.
    """

    def __init__(self, device: torch.device, constants: Mapping[str, Constant], sources: Sources | None = None) -> None:
        if device.type == "cuda" and device.index is None:
            device = torch.device("cuda", torch.cuda.current_device())
        self.device = device
        self.constants = dict(constants)
        self.sources = sources or read_sources()
        self.storage = torch.float16 if device.type == "cuda" else torch.float32
        self._modules: dict[str, _Module] = {}
        self._lock = threading.Lock()

    def struct(self, name: str, **values: torch.Tensor | float | None) -> Struct:
        """The struct ``name`` of layout.cuh; a pointer is a contiguous tensor of the declared type, or None."""
        return Struct(self, name, values)

    def launch(self, name: str, *arguments: Any, items: int) -> None:
        """Run a kernel over ``items`` items (threads; 32 times the packets for a kernel of packets).

        Raises TypeError if an argument is not what the kernel's declaration says, KernelError if the kernel cannot be
        compiled.
        """
        self.bind(name, *arguments, items=items)()

    def bind(self, name: str, *arguments: Any, items: int) -> Call:
        """Check the arguments of `launch` once, for many launches."""
        signature = self.sources.kernels[name]
        if len(arguments) != len(signature.parameters):
            raise TypeError(f"{name} takes {len(signature.parameters)} arguments, not {len(arguments)}")
        values = [self.checked(p, a) for p, a in zip(signature.parameters, arguments, strict=True)]
        return Call(self._module(signature.module).bind(signature, values, items), (arguments, values))

    def checked(self, parameter: Parameter, value: Any) -> Any:
        """``value`` as the ctypes value that ``parameter`` declares."""
        if isinstance(value, Struct):
            if parameter.pointer or value.name != parameter.type or value.device != self.device:
                raise TypeError(f"{parameter.name} is a {parameter.type}, not a {value.name} on {value.device}")
            return value.value
        if not parameter.pointer:
            scalar = _SCALARS.get(parameter.type)
            whole = isinstance(value, int) or (parameter.type == "float" and not isinstance(value, torch.Tensor))
            if scalar is None or not whole:
                raise TypeError(f"{parameter.name} is a {parameter.type}, not {type(value).__name__}")
            return scalar(value)
        if value is None:
            return ctypes.c_void_p(None)
        wanted = self.storage if parameter.type == "storage_t" else _ELEMENTS[parameter.type]
        if not isinstance(value, torch.Tensor):
            raise TypeError(f"{parameter.name} is a tensor of {wanted}, not {type(value).__name__}")
        if value.dtype != wanted or not value.is_contiguous() or value.device != self.device:
            raise TypeError(
                f"{parameter.name} is a contiguous array of {wanted} on {self.device}, not "
                f"{value.dtype} {tuple(value.shape)} on {value.device}"
            )
        return ctypes.c_void_p(value.data_ptr())

    def prepare(self, modules: Iterable[str] | None = None) -> None:
        """Compile and load ``modules``, all by default, several at once.  KernelError if one cannot be."""
        names = list(modules) if modules is not None else self.sources.modules
        self.compiler  # noqa: B018 - one line about a missing compiler, not one of every module
        with ThreadPoolExecutor(max_workers=max(1, min(len(names), os.cpu_count() or 1))) as pool:
            artifacts = list(pool.map(self._build, names))
        for artifact in artifacts:
            self._load(artifact)

    def report(self) -> list[Artifact]:
        """What is loaded: how long each module took to compile, where it lies, what it takes of a GPU."""
        with self._lock:
            return [module.artifact for _, module in sorted(self._modules.items())]

    def compiled(self) -> dict[str, Artifact | None]:
        """Every module as the cache has it, None if it is yet to be compiled.  Compiles and loads nothing."""
        return {name: find(self._program(name), self.compiler) for name in self.sources.modules}

    def range(self, name: str) -> contextlib.AbstractContextManager[None]:
        """Mark a stage for NVIDIA's profilers if ``TELEPRESENCE_NVTX=1``; else free."""
        return torch.cuda.nvtx.range(name) if self._profiled else _NOTHING

    @cached_property
    def _profiled(self) -> bool:
        return self.device.type == "cuda" and os.environ.get("TELEPRESENCE_NVTX") == "1"

    @cached_property
    def compiler(self) -> Compiler:
        """What compiles for this device; KernelError if there is nothing."""
        if self.device.type == "cuda":
            return NvrtcCompiler(Nvrtc(), torch.cuda.get_device_capability(self.device))
        return HostCompiler()

    @cached_property
    def _driver(self) -> _Driver:
        return _Driver(self.device)

    def _program(self, module: str) -> Program:
        return self.sources.program(module, self.constants)

    def _build(self, module: str) -> Artifact:
        return build(self._program(module), self.compiler)

    def _load(self, artifact: Artifact) -> _Module:
        with self._lock:
            if artifact.module not in self._modules:
                names = [s.name for s in self.sources.kernels.values() if s.module == artifact.module]
                on_gpu = self.device.type == "cuda"
                self._modules[artifact.module] = (
                    _CudaModule(artifact, names, self._driver) if on_gpu else _HostModule(artifact)
                )
            return self._modules[artifact.module]

    def _module(self, name: str) -> _Module:
        return self._modules.get(name) or self._load(self._build(name))


class Graph:
    """Work that is recorded once and then replayed with one call: ``graph()``.

    ``work`` launches kernels and torch operations of fixed shapes on fixed tensors.  The first call runs it as it is,
    which loads what it needs, and then records it (recording runs nothing); every later call replays it.  Work goes to
    ``stream``, which must not be the default one; whoever reads the results waits for it or for an event on it.
    Without a stream, which is to say on a host, each call runs ``work``.

    One capture runs at a time in a process; other threads may launch meanwhile but must not wait for the whole device.
    """

    _recording = threading.Lock()

    def __init__(self, work: Callable[[], None], stream: torch.cuda.Stream | None) -> None:
        self._work, self._stream = work, stream
        self._graph: torch.cuda.CUDAGraph | None = None

    def __call__(self) -> None:
        if self._stream is None:
            self._work()
            return
        with torch.cuda.stream(self._stream):
            if self._graph is not None:
                self._graph.replay()
                return
            self._work()
            self._graph = self._record()

    def _record(self) -> torch.cuda.CUDAGraph:
        graph = torch.cuda.CUDAGraph()
        with Graph._recording:
            # Not torch.cuda.graph(): it waits for the device, which work in other threads must not suffer.
            graph.capture_begin(capture_error_mode="thread_local")
            collecting = gc.isenabled()
            gc.disable()  # freeing memory of the device, which a collection may do at any moment, ends a capture
            try:
                self._work()
            finally:
                if collecting:
                    gc.enable()
                graph.capture_end()
        return graph


_NOTHING = contextlib.nullcontext()


class _HostModule:
    """A shared library."""

    _threads = threading.local()  # how many threads OpenMP was last told to use, of each calling thread

    def __init__(self, artifact: Artifact) -> None:
        self.artifact = artifact
        try:
            self._library = ctypes.CDLL(str(artifact.path))
        except OSError as error:
            raise KernelError(f"compiled {artifact.module} does not load: {error}") from None

    def bind(self, signature: Signature, values: list[Any], items: int) -> Callable[[], None]:  # noqa: ARG002
        function = getattr(self._library, signature.name)
        function.argtypes = [type(value) for value in values]
        function.restype = None
        return partial(self._launch, function, values)

    def _launch(self, function: Any, values: list[Any]) -> None:
        count = torch.get_num_threads()
        if getattr(self._threads, "count", None) != count:
            self._library.omp_set_num_threads(ctypes.c_int(count))
            self._threads.count = count
        function(*values)


class _CudaModule:
    """A module of the CUDA driver, with all its kernels loaded: loading one later could wait for the device."""

    def __init__(self, artifact: Artifact, names: Iterable[str], driver: _Driver) -> None:
        self.artifact, self._driver = artifact, driver
        self._functions = driver.load(artifact, names)

    def bind(self, signature: Signature, values: list[Any], items: int) -> Callable[[], None]:
        pointers = (ctypes.c_void_p * len(values))(*map(ctypes.addressof, values))
        blocks = max(1, min(-(-items // signature.threads), self._driver.most_blocks))
        return partial(self._driver.launch, self._functions[signature.name], blocks, signature.threads, pointers)


_Module = _HostModule | _CudaModule


class _Driver:
    """The CUDA driver, through cupy, in the context that torch uses on ``device``."""

    def __init__(self, device: torch.device) -> None:
        try:
            from cupy.cuda import driver
        except ImportError as error:
            reason = str(error).strip().partition("\n")[0]
            advice = f"pip install cupy-cuda{(torch.version.cuda or '13').partition('.')[0]}x"
            raise KernelError(f"cupy cannot be imported ({reason}): {advice}") from None
        self._api, self._device = driver, device
        with torch.cuda.device(device):
            torch.cuda.synchronize()  # torch makes its context current only when it needs one
            self._context = driver.ctxGetCurrent()
        processors = torch.cuda.get_device_properties(device).multi_processor_count
        self.most_blocks = _BLOCKS_PER_PROCESSOR * processors

    def load(self, artifact: Artifact, names: Iterable[str]) -> dict[str, int]:
        self._enter()
        try:
            module = self._api.moduleLoadData(artifact.image)
            return {name: self._api.moduleGetFunction(module, name) for name in names}
        except RuntimeError as error:  # cupy's CUDADriverError
            raise KernelError(f"the NVIDIA driver refuses compiled {artifact.module}: {error}; update it") from None

    def launch(self, function: int, blocks: int, threads: int, pointers: ctypes.Array[ctypes.c_void_p]) -> None:
        """``pointers`` lead to the arguments."""
        self._enter()
        stream = torch.cuda.current_stream(self._device).cuda_stream
        self._api.launchKernel(function, blocks, 1, 1, threads, 1, 1, 0, stream, ctypes.addressof(pointers), 0)

    def _enter(self) -> None:
        if self._api.ctxGetCurrent() != self._context:
            self._api.ctxSetCurrent(self._context)

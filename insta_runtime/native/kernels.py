"""Kernels: parse the sources in `cuda/`, compile them at first use, and launch them with checked arguments.

NVRTC compiles a source for an NVIDIA GPU, the C++ compiler of the machine for a CPU (cuda/platform.cuh).  Signatures of
kernels and layouts of structs are parsed from the source; arguments of a wrong type, device or layout raise TypeError.

On a GPU kernels run on torch's current stream of the calling thread and may be captured into a CUDA graph; launching
neither waits for the device nor allocates memory.
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

from insta_runtime.native.compilers import (
    Artifact,
    Compiler,
    HostCompiler,
    Nvrtc,
    NvrtcCompiler,
    Program,
    build,
    find_cached,
)
from insta_runtime.native.compilers import KernelError as KernelError  # re-exported for callers of kernels

Constant = int | float | tuple[int, ...]

_BLOCKS_PER_PROCESSOR = 32  # upper limit: kernels stride over the remaining items, further blocks would only queue

_SCALARS: dict[str, Any] = {"int": ctypes.c_int32, "uint": ctypes.c_uint32, "float": ctypes.c_float}
_ELEMENTS = {
    "float": torch.float32,
    "int": torch.int32,
    "uint": torch.int32,  # torch supports uint32 only in part; the bits are the same
    "byte": torch.uint8,
    "unsigned long long": torch.int64,
    "half": torch.float16,
}


def source_folder() -> Path:
    """Folder of the kernel sources: in the installed package, or at the root of a checkout."""
    here = Path(__file__).resolve().parents[1]
    packaged = here / "cuda"
    return packaged if packaged.is_dir() else here.parent / "cuda"


@dataclass(frozen=True)
class Parameter:
    """Declaration of a kernel parameter or struct field: C type without const, name, and whether it is a pointer."""

    type: str
    name: str
    pointer: bool


@dataclass(frozen=True)
class Signature:
    """Declaration of a kernel: its module (stem of the .cu file), parameters, and threads per block."""

    name: str
    module: str
    threads: int
    parameters: tuple[Parameter, ...]


class Sources:
    """Parsed kernel sources of a folder.

    Attributes:
        text: source text by file name. kernels: declarations of kernels by name.
        structs: fields of the structs of layout.cuh by name. structures: the same structs as ctypes classes.
    """

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
                    raise ValueError(f"kernel {kernel} is declared in both {self.kernels[kernel].module}.cu and {name}")
                self.kernels[kernel] = Signature(kernel, name.partition(".")[0], count, parameters)
        self.structures = {
            name: type(name, (ctypes.Structure,), {"_fields_": [(f.name, _c_type(f)) for f in fields]})
            for name, fields in self.structs.items()
        }

    @property
    def modules(self) -> list[str]:
        """Names of the modules that declare kernels, sorted."""
        return sorted({signature.module for signature in self.kernels.values()})

    def closure(self, file: str) -> list[str]:
        """``file`` and all files that it includes, directly or indirectly, each once."""
        files = [file]
        for name in files:
            files += [inner for inner in _INCLUDE.findall(self.text[name]) if inner not in files]
        return files

    def program(self, module: str, constants: Mapping[str, Constant]) -> Program:
        """The program of ``module``, with those of the constants that occur in its source."""
        files = {name: self.text[name] for name in self.closure(f"{module}.cu")}
        words = set(re.findall(r"\w+", " ".join(files.values())))
        used = sorted(set(constants) & words)
        return Program(module, files, tuple(f"-D{name}={_literal(constants[name])}" for name in used))


_COMMENT = re.compile(r"//[^\n]*")
_INCLUDE = re.compile(r'^#include "([^"]+)"', re.MULTILINE)
_KERNEL = re.compile(r"^KERNEL\((\w+)(?:, \w+)?\)\s*(\w+)\s*\(([^)]*)\)", re.MULTILINE)
_STRUCT = re.compile(r"^struct\s+(\w+)\s*\{([^}]*)\};", re.MULTILINE)
_PARAMETER = re.compile(r"^(?:const\s+)?([\w ]+?)\s*(\*?)\s*(?:__restrict__\s+)?(\w+)$")


@cache
def read_sources() -> Sources:
    """The parsed sources of `source_folder`, cached."""
    return Sources(source_folder())


def _defined(name: str, code: str) -> str:
    found = re.search(rf"#define\s+{name}\s+(\d+)", code)
    if found is None:
        raise ValueError(f"KERNEL({name}): give a number, or #define {name} as a number in the same file")
    return found.group(1)


def _parameter(text: str) -> Parameter:
    found = _PARAMETER.match(" ".join(text.split()))
    if found is None:
        raise ValueError(f"cannot parse the declaration {text!r} of a kernel parameter or struct field")
    return Parameter(found.group(1).removeprefix("const ").strip(), found.group(3), found.group(2) == "*")


def _c_type(declared: Parameter) -> Any:
    return ctypes.c_void_p if declared.pointer else _SCALARS[declared.type]


def _literal(value: Constant) -> str:
    if isinstance(value, tuple):
        return "{" + ",".join(map(_literal, value)) + "}"
    return f"{value!r}f" if isinstance(value, float) else str(int(value))


class Struct:
    """A struct of layout.cuh, filled with tensors and numbers; keeps its tensors alive."""

    def __init__(self, kernels: Kernels, name: str, values: Mapping[str, torch.Tensor | float | None]) -> None:
        fields = kernels.sources.structs[name]
        if set(values) != {field.name for field in fields}:
            raise TypeError(f"struct {name} has the fields {[f.name for f in fields]}; given were {list(values)}")
        self.name, self.device, self.tensors = name, kernels.device, dict(values)
        self.value = kernels.sources.structures[name](*(kernels.checked(field, values[field.name]) for field in fields))

    def tensor(self, name: str) -> torch.Tensor:
        """The tensor of the pointer field ``name``, which must not be null."""
        tensor = self.tensors[name]
        assert isinstance(tensor, torch.Tensor)
        return tensor


class BoundLaunch:
    """A kernel launch with checked and bound arguments: ``launch()`` runs it, any number of times.

    Keeps its tensors alive; kernels read their contents at the time of the launch.
    """

    def __init__(self, launch: Callable[[], None], arguments: tuple[Any, ...]) -> None:
        self._launch, self._arguments = launch, arguments

    def __call__(self) -> None:
        self._launch()


class Kernels:
    """Compiled kernels for one device.

    Attributes:
        device: device of all tensors. storage: dtype of the weights in kernel layout (fp16 on a GPU, fp32 on a CPU).
        constants: constants that are compiled in, by name. sources: the parsed kernel sources.
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
        """Build the struct ``name`` of layout.cuh; pointers are contiguous tensors of the declared type, or None."""
        return Struct(self, name, values)

    def launch(self, name: str, *arguments: Any, items: int) -> None:
        """Launch a kernel over ``items`` threads (32 for each packet, in kernels that work on packets).

        Raises TypeError if an argument does not match the kernel's declaration, KernelError if the kernel cannot be
        compiled.
        """
        self.bind(name, *arguments, items=items)()

    def bind(self, name: str, *arguments: Any, items: int) -> BoundLaunch:
        """Check and bind the arguments of `launch` once, for repeated launches."""
        signature = self.sources.kernels[name]
        if len(arguments) != len(signature.parameters):
            raise TypeError(f"kernel {name} takes {len(signature.parameters)} arguments; given were {len(arguments)}")
        values = [self.checked(p, a) for p, a in zip(signature.parameters, arguments, strict=True)]
        return BoundLaunch(self._module(signature.module).bind(signature, values, items), (arguments, values))

    def checked(self, parameter: Parameter, value: Any) -> Any:
        """``value`` as ctypes value of the declared type of ``parameter``; TypeError if it does not match."""
        if isinstance(value, Struct):
            if parameter.pointer or value.name != parameter.type or value.device != self.device:
                raise TypeError(
                    f"argument {parameter.name} must be a {parameter.type} on {self.device}, "
                    f"not a {value.name} on {value.device}"
                )
            return value.value
        if not parameter.pointer:
            scalar = _SCALARS.get(parameter.type)
            whole = isinstance(value, int) or (parameter.type == "float" and not isinstance(value, torch.Tensor))
            if scalar is None or not whole:
                raise TypeError(f"argument {parameter.name} must be a {parameter.type}, not {type(value).__name__}")
            return scalar(value)
        if value is None:
            return ctypes.c_void_p(None)
        dtype = self.storage if parameter.type == "storage_t" else _ELEMENTS[parameter.type]
        if not isinstance(value, torch.Tensor):
            raise TypeError(f"argument {parameter.name} must be a tensor of {dtype}, not {type(value).__name__}")
        if value.dtype != dtype or not value.is_contiguous() or value.device != self.device:
            raise TypeError(
                f"argument {parameter.name} must be a contiguous tensor of {dtype} on {self.device}, not "
                f"{value.dtype} {tuple(value.shape)} on {value.device}"
            )
        return ctypes.c_void_p(value.data_ptr())

    def prepare(self, modules: Iterable[str] | None = None) -> None:
        """Compile in parallel and load ``modules``, by default all.  Raises KernelError if that fails for any."""
        names = list(modules) if modules is not None else self.sources.modules
        self.compiler  # noqa: B018 - raises one error for a missing compiler instead of one for each module
        with ThreadPoolExecutor(max_workers=max(1, min(len(names), os.cpu_count() or 1))) as pool:
            artifacts = list(pool.map(self._build, names))
        for artifact in artifacts:
            self._load(artifact)

    def report(self) -> list[Artifact]:
        """The loaded modules: compile time, file in the cache, and GPU resources of each."""
        with self._lock:
            return [module.artifact for _, module in sorted(self._modules.items())]

    def compiled(self) -> dict[str, Artifact | None]:
        """The cached artifact of every module, None where it is not compiled yet.  Compiles and loads nothing."""
        return {name: find_cached(self._program(name), self.compiler) for name in self.sources.modules}

    def range(self, name: str) -> contextlib.AbstractContextManager[None]:
        """An NVTX range for NVIDIA's profilers if ``TELEPRESENCE_NVTX=1`` is set; otherwise without effect."""
        return torch.cuda.nvtx.range(name) if self._profiled else _NOTHING

    @cached_property
    def _profiled(self) -> bool:
        return self.device.type == "cuda" and os.environ.get("TELEPRESENCE_NVTX") == "1"

    @cached_property
    def compiler(self) -> Compiler:
        """The compiler for this device; KernelError if there is none."""
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
    """A function that is captured into a CUDA graph and then replayed with one launch per call, ``graph()``.

    ``work`` launches kernels and torch operations of fixed shapes on fixed tensors.  The first call runs ``work``
    directly, which loads its modules, and then captures it (a capture does not execute); later calls replay the graph.
    The work runs on ``stream``, which must not be the default stream; readers of the results must wait for the stream
    or for an event on it.  Without a stream, on a CPU, every call runs ``work``.

    Captures are serialised within the process.  Other threads may launch kernels during a capture, but must not
    synchronise the whole device.
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
            # torch.cuda.graph() is not used because it synchronises the device, which would stall other threads.
            graph.capture_begin(capture_error_mode="thread_local")
            collecting = gc.isenabled()
            gc.disable()  # a garbage collection may free device memory, which would invalidate the capture
            try:
                self._work()
            finally:
                if collecting:
                    gc.enable()
                graph.capture_end()
        return graph


_NOTHING = contextlib.nullcontext()


class _HostModule:
    """A module compiled for the CPU, as a shared library."""

    _threads = threading.local()  # number of OpenMP threads last set, per calling thread

    def __init__(self, artifact: Artifact) -> None:
        self.artifact = artifact
        try:
            self._library = ctypes.CDLL(str(artifact.path))
        except OSError as error:
            raise KernelError(f"the compiled module {artifact.module} cannot be loaded: {error}") from None

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
    """A module loaded by the CUDA driver, with all its kernels; loading one later could wait for the device."""

    def __init__(self, artifact: Artifact, names: Iterable[str], driver: _Driver) -> None:
        self.artifact, self._driver = artifact, driver
        self._functions = driver.load(artifact, names)

    def bind(self, signature: Signature, values: list[Any], items: int) -> Callable[[], None]:
        pointers = (ctypes.c_void_p * len(values))(*map(ctypes.addressof, values))
        blocks = max(1, min(-(-items // signature.threads), self._driver.most_blocks))
        return partial(self._driver.launch, self._functions[signature.name], blocks, signature.threads, pointers)


_Module = _HostModule | _CudaModule


class _Driver:
    """CUDA driver functions (through cupy) in the context that torch uses on ``device``."""

    def __init__(self, device: torch.device) -> None:
        try:
            from cupy.cuda import driver
        except ImportError as error:
            reason = str(error).strip().partition("\n")[0]
            advice = f"pip install cupy-cuda{(torch.version.cuda or '13').partition('.')[0]}x"
            raise KernelError(f"cupy cannot be imported ({reason}): {advice}") from None
        self._api, self._device = driver, device
        with torch.cuda.device(device):
            torch.cuda.synchronize()  # makes torch's context current, which torch does only on first use
            self._context = driver.ctxGetCurrent()
        processors = torch.cuda.get_device_properties(device).multi_processor_count
        self.most_blocks = _BLOCKS_PER_PROCESSOR * processors

    def load(self, artifact: Artifact, names: Iterable[str]) -> dict[str, int]:
        self._enter()
        try:
            module = self._api.moduleLoadData(artifact.image)
            return {name: self._api.moduleGetFunction(module, name) for name in names}
        except RuntimeError as error:  # cupy's CUDADriverError
            raise KernelError(
                f"the NVIDIA driver cannot load the compiled module {artifact.module} ({error}): update the driver"
            ) from None

    def launch(self, function: int, blocks: int, threads: int, pointers: ctypes.Array[ctypes.c_void_p]) -> None:
        """Launch ``function`` on the current stream; ``pointers`` are the addresses of its arguments."""
        self._enter()
        stream = torch.cuda.current_stream(self._device).cuda_stream
        self._api.launchKernel(function, blocks, 1, 1, threads, 1, 1, 0, stream, ctypes.addressof(pointers), 0)

    def _enter(self) -> None:
        if self._api.ctxGetCurrent() != self._context:
            self._api.ctxSetCurrent(self._context)

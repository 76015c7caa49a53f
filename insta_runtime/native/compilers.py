"""Compilers of kernels (C++ compiler for a CPU, NVRTC for a GPU), and the cache of compiled modules.

`HostCompiler` runs the machine's C++ compiler; `NvrtcCompiler` calls NVIDIA's runtime compiler through ctypes.  Both
compile a `Program` into one file; `build` looks in the cache first.
"""

from __future__ import annotations

import atexit
import ctypes
import ctypes.util
import hashlib
import importlib.util
import json
import logging
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any, Protocol

from insta_runtime.errors import UserError
from insta_runtime.files import atomic_file

log = logging.getLogger(__name__)


class KernelError(UserError):
    """Kernels cannot be compiled or loaded on this machine; the message gives the reason and a remedy."""


@dataclass(frozen=True)
class Program:
    """Source of one module: its name, the texts of ``name.cu`` and of all files that it includes, and -D options."""

    name: str
    files: Mapping[str, str]
    defines: tuple[str, ...]


@dataclass(frozen=True)
class Resources:
    """GPU resources of one kernel.

    Attributes:
        registers: registers per thread. stack: bytes of stack per thread.
        spilled: bytes of register spills per thread, stores and loads. shared: bytes of static shared memory per block.
    """

    registers: int
    stack: int
    spilled: int
    shared: int


@dataclass(frozen=True)
class Artifact:
    """A compiled module.

    Attributes:
        image: the loadable binary. path: its file in the cache. seconds: compile time.
        cached: whether it was found in the cache. resources: GPU resources by kernel name; empty for a CPU.
    """

    module: str
    image: bytes
    path: Path
    seconds: float
    cached: bool
    resources: dict[str, Resources]


class Compiler(Protocol):
    """A compiler, as `build` uses it.

    ``identity`` describes everything besides the program on which the result depends; ``str()`` is a readable name.
    """

    @property
    def identity(self) -> str: ...

    @property
    def suffix(self) -> str: ...

    def compile(self, program: Program) -> tuple[bytes, str]:
        """The binary and the compiler's log; KernelError if the program cannot be compiled."""


class HostCompiler:
    """The C++ compiler of this machine, compiling for its processor: ``CXX``, else the first of c++, g++, clang++.

    ``TELEPRESENCE_KERNEL_SANITIZE=1`` builds with AddressSanitizer and UndefinedBehaviorSanitizer, for tests.
    KernelError if there is no compiler.
    """

    suffix = ".so"

    def __init__(self) -> None:
        named = shlex.split(os.environ.get("CXX", ""))
        found = next(filter(shutil.which, named[:1] or ("c++", "g++", "clang++")), None)
        if found is None:
            problem = f"CXX names {named[0]!r}, which was not found" if named else "no C++ compiler was found"
            raise KernelError(f"{problem}: install g++ (Debian: apt-get install g++) or set CXX to a compiler")
        self.command = (str(shutil.which(found)), *named[1:])
        self.version = _version(self.command)
        loose = ("math-errno", "trapping-math", "signed-zeros")
        on_x86 = platform.machine() in ("x86_64", "AMD64")
        wide = ("-mprefer-vector-width=512",) if on_x86 else ()  # a packet of 32 lanes fills two vectors
        fast = ("-O3", *wide, *(f"-fno-{name}" for name in loose), "-fassociative-math", "-freciprocal-math")
        sanitized = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all")
        checked = ("-O1", "-g1", "-fno-omit-frame-pointer", *sanitized)  # -g would take four times as long to compile
        self.options = (
            *("-std=c++17", "-march=native", "-fopenmp", "-fPIC", "-shared"),
            *(checked if os.environ.get("TELEPRESENCE_KERNEL_SANITIZE") == "1" else fast),
            *("-Wall", "-Wno-unknown-pragmas", "-Wno-unused-function"),
        )

    def __str__(self) -> str:
        return self.version

    @property
    def identity(self) -> str:
        return repr((self.command, self.version, self.options, processor()))

    def compile(self, program: Program) -> tuple[bytes, str]:
        with tempfile.TemporaryDirectory(prefix="telepresence-") as name:
            folder = Path(name)
            for (
                file,
                text,
            ) in (
                program.files.items()
            ):  # the texts from which the cache key was computed; files on disk may have changed
                (folder / file).write_text(text, encoding="utf-8")
            target = folder / "module.so"
            source = ("-x", "c++", f"{program.name}.cu", "-o", target.name)
            command = [*self.command, *self.options, *program.defines, *source]
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)  # noqa: S603
            if done.returncode != 0:
                raise _compile_error(program.name, Path(self.command[0]).name, done.stderr)
            return target.read_bytes(), done.stderr


class NvrtcCompiler:
    """NVRTC for a GPU of compute capability ``(major, minor)``: machine code, or PTX for GPUs newer than NVRTC."""

    def __init__(self, nvrtc: Nvrtc, capability: tuple[int, int]) -> None:
        self.nvrtc = nvrtc
        card = capability[0] * 10 + capability[1]
        known = [architecture for architecture in nvrtc.architectures if architecture <= card]
        if not known:
            oldest = min(nvrtc.architectures)
            raise KernelError(
                f"NVRTC {nvrtc.version} does not support compute capability {card / 10} (the oldest is {oldest / 10}): "
                f"install torch for an earlier CUDA release"
            )
        newest = max(known)
        self.binary = newest // 10 == capability[0]  # machine code runs on later GPUs of the same major version only
        self.architecture = f"{'sm' if self.binary else 'compute'}_{newest}"
        self.options = ("--std=c++17", f"--gpu-architecture={self.architecture}", "-lineinfo", "--ptxas-options=-v")

    def __str__(self) -> str:
        return f"NVRTC {self.nvrtc.version} for {self.architecture}"

    @property
    def suffix(self) -> str:
        return ".cubin" if self.binary else ".ptx"

    @property
    def identity(self) -> str:
        return repr((self.nvrtc.version, self.options))

    def compile(self, program: Program) -> tuple[bytes, str]:
        return self.nvrtc.compile(program, self.options, self.binary)


class Nvrtc:
    """NVIDIA's runtime compiler, the library libnvrtc, loaded through ctypes.  KernelError if it cannot be loaded.

    Attributes:
        path: file of the library. version: such as "13.0".
        architectures: supported compute capabilities times ten (75 is 7.5).
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path = path or _find_nvrtc()
        try:
            for builtins in sorted(self.path.parent.glob("*nvrtc-builtins*")):
                if ".alt." not in builtins.name:
                    ctypes.CDLL(str(builtins))  # loaded first, so that libnvrtc finds it by name
            self._library = ctypes.CDLL(str(self.path))
        except OSError as error:
            raise KernelError(f"NVRTC ({self.path}) cannot be loaded: {error}") from None
        self._library.nvrtcGetErrorString.restype = ctypes.c_char_p
        major, minor = ctypes.c_int(), ctypes.c_int()
        self._call("nvrtcVersion", ctypes.byref(major), ctypes.byref(minor))
        self.version = f"{major.value}.{minor.value}"
        count = ctypes.c_int()
        self._call("nvrtcGetNumSupportedArchs", ctypes.byref(count))
        numbers = (ctypes.c_int * count.value)()
        self._call("nvrtcGetSupportedArchs", numbers)
        self.architectures = tuple(numbers)

    def compile(self, program: Program, options: tuple[str, ...], binary: bool) -> tuple[bytes, str]:
        """Compile ``program``: machine code (PTX unless ``binary``), and the compiler's log."""
        headers = [name for name in program.files if name != f"{program.name}.cu"]
        arguments = _strings([*options, *program.defines])
        handle = ctypes.c_void_p()
        self._call(
            "nvrtcCreateProgram",
            ctypes.byref(handle),
            ctypes.c_char_p(program.files[f"{program.name}.cu"].encode()),
            ctypes.c_char_p(f"{program.name}.cu".encode()),
            ctypes.c_int(len(headers)),
            _strings([program.files[name] for name in headers]),
            _strings(headers),
        )
        try:
            status = self._library.nvrtcCompileProgram(handle, ctypes.c_int(len(arguments)), arguments)
            text = self._output(handle, "nvrtcGetProgramLog").rstrip(b"\0").decode(errors="replace")
            if status != 0:
                raise _compile_error(program.name, f"NVRTC {self.version}", text or self._message(status))
            return self._output(handle, "nvrtcGetCUBIN" if binary else "nvrtcGetPTX"), text
        finally:
            self._call("nvrtcDestroyProgram", ctypes.byref(handle))

    def _output(self, handle: ctypes.c_void_p, what: str) -> bytes:
        size = ctypes.c_size_t()
        self._call(f"{what}Size", handle, ctypes.byref(size))
        buffer = ctypes.create_string_buffer(size.value)
        self._call(what, handle, buffer)
        return buffer.raw

    def _call(self, name: str, *arguments: Any) -> None:
        status = getattr(self._library, name)(*arguments)
        if status != 0:
            raise KernelError(f"NVRTC ({self.path}): {name} failed: {self._message(status)}")

    def _message(self, status: int) -> str:
        return (self._library.nvrtcGetErrorString(ctypes.c_int(status)) or b"").decode()


def build(program: Program, compiler: Compiler) -> Artifact:
    """Compile ``program``, or load it from the cache.  KernelError if it cannot be compiled."""
    found = find_cached(program, compiler)
    if found is not None:
        return found
    start = time.monotonic()
    image, text = compiler.compile(program)
    seconds = time.monotonic() - start
    resources = read_resources(text)
    facts = {"seconds": seconds, "resources": {name: asdict(value) for name, value in resources.items()}}
    path = _write(_path(program, compiler), image, facts)
    return Artifact(program.name, image, path, seconds, False, resources)


def find_cached(program: Program, compiler: Compiler) -> Artifact | None:
    """The compiled ``program`` from the cache, None if it is not there or its file is damaged."""
    path = _path(program, compiler)
    paths = [path, *(folder / path.name for folder in _fallback_folders)]
    return next((found for each in paths if (found := _read(program.name, each))), None)


def cache_folder() -> Path:
    """Folder of the cache of compiled kernels: ``TELEPRESENCE_KERNEL_CACHE``, else in the user's cache folder."""
    if named := os.environ.get("TELEPRESENCE_KERNEL_CACHE"):
        return Path(named)
    if sys.platform == "win32" and (local := os.environ.get("LOCALAPPDATA")):
        return Path(local) / "telepresence" / "kernels"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "telepresence" / "kernels"


def read_resources(text: str) -> dict[str, Resources]:
    """GPU resources by kernel name, parsed from the ptxas log of a module; empty for the log of a C++ compiler."""
    found = {}
    for part in text.split("Compiling entry function ")[1:]:

        def number(pattern: str, part: str = part) -> int:
            return sum(map(int, re.findall(pattern, part)))

        found[part.split("'")[1]] = Resources(
            registers=number(r"Used (\d+) registers"),
            stack=number(r"(\d+) bytes stack frame"),
            spilled=number(r"(\d+) bytes spill"),
            shared=number(r"(\d+) bytes smem"),
        )
    return found


@cache
def processor() -> str:
    """Model and instruction-set features of this machine's processor, as far as the system reports them."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
    fields = ("model name", "flags", "Features", "CPU part")
    return "\n".join([platform.machine(), *sorted({line for line in lines if line.startswith(fields)})])


# Layout of a cache file: the binary, JSON metadata, length of the JSON (4 bytes), SHA-256 digest of everything before.
# Loaders of the binary ignore the bytes behind it.
_DIGEST = hashlib.sha256().digest_size


def _path(program: Program, compiler: Compiler) -> Path:
    key = repr((compiler.identity, program.defines, sorted(program.files.items())))
    digest = hashlib.sha256(key.encode()).hexdigest()[:32]
    return cache_folder() / f"{program.name}-{digest}{compiler.suffix}"


def _read(module: str, path: Path) -> Artifact | None:
    try:
        data = path.read_bytes()
    except OSError:
        return None
    body = data[:-_DIGEST]
    if hashlib.sha256(body).digest() != data[-_DIGEST:]:
        log.warning("the compiled module %s in %s is damaged and is compiled again", module, path.parent)
        return None
    end = len(body) - 4 - int.from_bytes(body[-4:], "little")
    facts = json.loads(body[end:-4])
    resources = {name: Resources(**values) for name, values in facts["resources"].items()}
    return Artifact(module, body[:end], path, facts["seconds"], True, resources)


def _write(path: Path, image: bytes, facts: Mapping[str, Any]) -> Path:
    """Write a binary to the cache, or to a temporary folder if the cache is not writable; returns the file's path."""
    text = json.dumps(facts).encode()
    body = image + text + len(text).to_bytes(4, "little")
    data = body + hashlib.sha256(body).digest()
    try:
        return _replace(path, data)
    except OSError as error:
        _warn_unwritable(str(path.parent), str(error.strerror or error))
    try:
        return _replace(_fallback_folder() / path.name, data)
    except OSError as error:
        advice = "set TELEPRESENCE_KERNEL_CACHE to a writable folder"
        raise KernelError(f"compiled kernels cannot be written to disk ({error}): {advice}") from None


def _replace(path: Path, data: bytes) -> Path:
    """Write a file atomically; other processes may write it at the same time."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with atomic_file(path, concurrent=True, mode=0o600) as file:
        file.write(data)
    return path


@cache
def _warn_unwritable(folder: str, reason: str) -> None:
    log.warning(
        "compiled kernels cannot be cached in %s (%s) and are compiled again in every process: "
        "set TELEPRESENCE_KERNEL_CACHE to a writable folder",
        folder,
        reason,
    )


_fallback_folders: list[Path] = []  # temporary folder of this process, if the cache is not writable
_fallback_lock = threading.Lock()


def _fallback_folder() -> Path:
    with _fallback_lock:
        if not _fallback_folders:
            _fallback_folders.append(Path(tempfile.mkdtemp(prefix="telepresence-kernels-")))
            atexit.register(shutil.rmtree, _fallback_folders[0], ignore_errors=True)
        return _fallback_folders[0]


def _compile_error(module: str, compiler: str, text: str) -> KernelError:
    """An error with the first error line of the compiler's output; the whole output is attached as a note."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    first = next((line for line in lines if "error" in line), lines[0] if lines else "no message")
    error = KernelError(f"{compiler} cannot compile {module}.cu: {first}")
    error.add_note(text)
    return error


@cache
def _version(command: tuple[str, ...]) -> str:
    """First line of a compiler's ``--version`` output."""
    try:
        done = subprocess.run([*command, "--version"], capture_output=True, text=True, timeout=20, check=True)  # noqa: S603
    except (OSError, subprocess.SubprocessError) as error:
        raise KernelError(f"the C++ compiler {command[0]} cannot be run: {error}") from None
    return done.stdout.partition("\n")[0]


def _strings(texts: list[str]) -> ctypes.Array[ctypes.c_char_p]:
    return (ctypes.c_char_p * len(texts))(*(text.encode() for text in texts))


def _find_nvrtc() -> Path:
    """File of libnvrtc: from NVIDIA's Python packages, which torch depends on, else from a CUDA toolkit."""
    import torch

    files = (path for folder in _nvrtc_folders() for path in sorted(folder.glob(_NVRTC_PATTERN)))
    found = [path for path in files if ".alt." not in path.name]
    if not found and (system := ctypes.util.find_library("nvrtc")):
        found = [Path(system)]
    if not found:
        raise KernelError("NVRTC was not found: pip install nvidia-cuda-nvrtc for torch's CUDA release")
    release = (torch.version.cuda or "").partition(".")[0]
    fitting = [path for path in found if re.search(rf"(so\.|64_){release}", path.name)]
    return (fitting or found)[0]


_NVRTC_PATTERN = "nvrtc64_*.dll" if sys.platform == "win32" else "libnvrtc.so.[0-9]*"


def _nvrtc_folders() -> Iterator[Path]:
    packages = importlib.util.find_spec("nvidia")
    for root in (packages.submodule_search_locations or ()) if packages else ():
        for name in ("cu[0-9]*", "cuda_nvrtc"):
            for package in sorted(Path(root).glob(name), reverse=True):
                yield from (package / "lib", package / "bin" / "x86_64", package / "bin")
    for variable in ("CUDA_PATH", "CUDA_HOME"):
        if toolkit := os.environ.get(variable):
            yield from (Path(toolkit) / "lib64", Path(toolkit) / "bin")
    yield Path("/usr/local/cuda/lib64")

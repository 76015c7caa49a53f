"""Every module compiles for every supported GPU architecture within its limits.  Needs NVRTC but no GPU."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from insta_runtime.native.compilers import Nvrtc, NvrtcCompiler, Program, build, find_cached
from insta_runtime.native.constants import avatar_constants
from insta_runtime.native.kernels import KernelError, read_sources
from telepresence.config import load_config

CAPABILITIES = ((7, 5), (8, 0), (8, 6), (8, 9), (9, 0), (12, 0))
PRESETS = {
    "default": CAPABILITIES,
    "cpu": ((7, 5), (12, 0)),
    "insta_paper": ((7, 5), (9, 0)),
}  # and the architectures for which each is compiled, to save time

MAX_REGISTERS = 255  # hardware limit per thread
MAX_SHARED = 48 * 1024  # bytes of static shared memory per block on every GPU
MAX_SPILLED = 64  # bytes per thread, stores and loads: so few stay in the L1 cache
SPILLED = {  # kernels with more spills, and why they are accepted
    "render_rays": 256,  # spills around a loop; fewer warps would hide less of the hash grid's latency
    "grid_mlp_backward": 128,  # a second block per multiprocessor saves a quarter of the time
    "field_backward": 800,  # the gradients of a whole layer stay in registers; otherwise a second pass would be needed
}
# The field of the INSTA paper has more layers and four times the features; it is not meant for live use.
SPILLED_BY_PAPER = {
    "render_rays": 600,
    "field_samples": 600,
    "field_backward": 2000,
    "grid_mlp_backward": 900,
    "grid_mlp_outputs": 900,
}


@pytest.fixture(scope="module")
def nvrtc() -> Nvrtc:
    try:
        return Nvrtc()
    except KernelError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("module", read_sources().modules)
def test_a_module_fits_every_gpu_architecture(module: str, nvrtc: Nvrtc) -> None:
    sources = read_sources()
    kernels = {kernel.name: kernel for kernel in sources.kernels.values() if kernel.module == module}
    jobs: dict[tuple[tuple[str, ...], tuple[int, int]], tuple[Program, NvrtcCompiler]] = {}
    accepted: dict[tuple[str, ...], dict[str, int]] = {}
    for preset, capabilities in PRESETS.items():
        program = sources.program(module, avatar_constants(load_config(preset).avatar))
        accepted.setdefault(program.defines, SPILLED_BY_PAPER if preset == "insta_paper" else SPILLED)
        for capability in capabilities:
            jobs.setdefault((program.defines, capability), (program, NvrtcCompiler(nvrtc, capability)))
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # from the cache if nothing has changed
        artifacts = list(pool.map(lambda job: build(*job), jobs.values()))
    for (program, compiler), artifact in zip(jobs.values(), artifacts, strict=True):
        assert compiler.binary
        assert artifact.image.startswith(b"\x7fELF")
        assert set(artifact.resources) == set(kernels)
        for name, used in artifact.resources.items():
            where = f"{name} for {compiler.architecture}: {used}"
            assert 0 < used.registers <= MAX_REGISTERS, where
            assert used.registers * kernels[name].threads <= 65536, where
            assert used.shared <= MAX_SHARED, where
            assert used.spilled <= accepted[program.defines].get(name, MAX_SPILLED), where


SMALL = Program(
    "small",
    {
        "small.cu": '#include "deep.cuh"\nextern "C" __global__ void small(float* x) { x[threadIdx.x] = TWICE(A); }\n',
        "deep.cuh": "#define TWICE(a) (2 * (a))\n",
    },
    ("-DA=21",),
)


@pytest.mark.parametrize(
    ("capability", "architecture"),
    [((9, 0), "sm_90"), ((8, 9), "sm_89"), ((12, 9), "sm_121"), ((9, 9), "sm_90"), ((99, 0), "compute_121")],
)
def test_a_gpu_gets_code_that_it_can_run(capability: tuple[int, int], architecture: str, nvrtc: Nvrtc) -> None:
    """A GPU newer than NVRTC runs machine code of its major version, or translates PTX of the newest known version."""
    if max(nvrtc.architectures) != 121:
        pytest.skip(f"NVRTC {nvrtc.version} supports other architectures")
    compiler = NvrtcCompiler(nvrtc, capability)
    assert compiler.architecture == architecture
    image, _ = compiler.compile(SMALL)
    assert image.startswith(b"\x7fELF") if architecture.startswith("sm") else b".target sm_121" in image


def test_an_unsupported_old_gpu_is_an_error(nvrtc: Nvrtc) -> None:
    with pytest.raises(KernelError, match=r"^NVRTC \S+ does not support compute capability 3\.5 [^\n]*$"):
        NvrtcCompiler(nvrtc, (3, 5))


def test_a_compile_error_of_nvrtc_is_one_line(nvrtc: Nvrtc) -> None:
    with pytest.raises(KernelError) as refusal:
        NvrtcCompiler(nvrtc, (8, 0)).compile(Program(SMALL.name, SMALL.files, ()))
    assert str(refusal.value) == (
        f'NVRTC {nvrtc.version} cannot compile small.cu: small.cu(2): error: identifier "A" is undefined'
    )


def test_gpu_code_is_cached_with_its_resources(nvrtc: Nvrtc, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TELEPRESENCE_KERNEL_CACHE", str(tmp_path))
    compiler = NvrtcCompiler(nvrtc, (8, 0))
    made = build(SMALL, compiler)
    again = find_cached(SMALL, compiler)
    assert again is not None
    assert (made.cached, again.cached) == (False, True)
    assert again.image == made.image
    assert again.resources == made.resources
    assert made.resources["small"].registers > 0
    assert find_cached(SMALL, NvrtcCompiler(nvrtc, (8, 6))) is None
    assert find_cached(Program(SMALL.name, SMALL.files, ("-DA=22",)), compiler) is None


def test_a_broken_nvrtc_library_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "libnvrtc.so.13").write_text("not a library")
    with pytest.raises(KernelError, match=r"^NVRTC \([^\n]*\) cannot be loaded: [^\n]*$"):
        Nvrtc(tmp_path / "libnvrtc.so.13")

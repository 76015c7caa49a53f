"""Every module compiles for every card that is supported, and fits it.  Needs NVRTC, which is a package; no GPU."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from insta_runtime.native.compilers import Nvrtc, NvrtcCompiler, Program, build, find
from insta_runtime.native.constants import avatar_constants
from insta_runtime.native.kernels import KernelError, read_sources
from telepresence.config import load_config

CAPABILITIES = ((7, 5), (8, 0), (8, 6), (8, 9), (9, 0), (12, 0))
PRESETS = {
    "default": CAPABILITIES,
    "cpu": ((7, 5), (12, 0)),
    "insta_paper": ((7, 5), (9, 0)),
}  # and the cards that each is compiled for: time is dear

MOST_REGISTERS = 255  # what a thread can have
MOST_SHARED = 48 * 1024  # bytes that a block has on every card
MOST_SPILLED = 64  # bytes a thread, stored and loaded: a few, around a loop, stay in the first cache
SPILLED = {  # where it is more, and why that is borne
    "render_rays": 256,  # around a loop; with fewer warps to hide the table's latency it would be slower
    "grid_mlp_backward": 128,  # a second block a processor is worth a quarter of the time
    "field_backward": 800,  # gradients of a whole layer stay in registers; fewer would mean a second pass
}
# The original's field has more layers and four times the features: nothing that is shown while it is learned.
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


@pytest.mark.timeout(600)
@pytest.mark.parametrize("module", read_sources().modules)
def test_a_module_fits_every_card(module: str, nvrtc: Nvrtc) -> None:
    sources = read_sources()
    kernels = {kernel.name: kernel for kernel in sources.kernels.values() if kernel.module == module}
    jobs: dict[tuple[tuple[str, ...], tuple[int, int]], tuple[Program, NvrtcCompiler]] = {}
    borne: dict[tuple[str, ...], dict[str, int]] = {}
    for preset, capabilities in PRESETS.items():
        program = sources.program(module, avatar_constants(load_config(preset).avatar))
        borne.setdefault(program.defines, SPILLED_BY_PAPER if preset == "insta_paper" else SPILLED)
        for capability in capabilities:
            jobs.setdefault((program.defines, capability), (program, NvrtcCompiler(nvrtc, capability)))
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # from the cache if nothing has changed
        artifacts = list(pool.map(lambda job: build(*job), jobs.values()))
    for (program, compiler), artifact in zip(jobs.values(), artifacts, strict=True):
        assert compiler.binary
        assert artifact.image.startswith(b"\x7fELF")
        assert set(artifact.resources) == set(kernels)
        for name, taken in artifact.resources.items():
            where = f"{name} for {compiler.architecture}: {taken}"
            assert 0 < taken.registers <= MOST_REGISTERS, where
            assert taken.registers * kernels[name].threads <= 65536, where
            assert taken.shared <= MOST_SHARED, where
            assert taken.spilled <= borne[program.defines].get(name, MOST_SPILLED), where


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
def test_a_card_gets_code_that_it_runs(capability: tuple[int, int], architecture: str, nvrtc: Nvrtc) -> None:
    """A card that NVRTC does not know runs code of its generation, or translates PTX of the newest that is known."""
    if max(nvrtc.architectures) != 121:
        pytest.skip(f"NVRTC {nvrtc.version} knows other cards")
    compiler = NvrtcCompiler(nvrtc, capability)
    assert compiler.architecture == architecture
    image, _ = compiler.compile(SMALL)
    assert image.startswith(b"\x7fELF") if architecture.startswith("sm") else b".target sm_121" in image


def test_a_card_that_is_too_old_is_told(nvrtc: Nvrtc) -> None:
    with pytest.raises(KernelError, match=r"^NVRTC \S+ knows no card of compute capability 3\.5: it begins at [^\n]*$"):
        NvrtcCompiler(nvrtc, (3, 5))


def test_what_nvrtc_refuses_is_one_line(nvrtc: Nvrtc) -> None:
    with pytest.raises(KernelError) as refusal:
        NvrtcCompiler(nvrtc, (8, 0)).compile(Program(SMALL.name, SMALL.files, ()))
    assert str(refusal.value) == (
        f'NVRTC {nvrtc.version} cannot compile small.cu: small.cu(2): error: identifier "A" is undefined'
    )


def test_code_for_a_card_is_cached_with_what_it_takes(
    nvrtc: Nvrtc, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TELEPRESENCE_KERNEL_CACHE", str(tmp_path))
    compiler = NvrtcCompiler(nvrtc, (8, 0))
    made = build(SMALL, compiler)
    again = find(SMALL, compiler)
    assert again is not None
    assert (made.cached, again.cached) == (False, True)
    assert again.image == made.image
    assert again.resources == made.resources
    assert made.resources["small"].registers > 0
    assert find(SMALL, NvrtcCompiler(nvrtc, (8, 6))) is None
    assert find(Program(SMALL.name, SMALL.files, ("-DA=22",)), compiler) is None


def test_no_nvrtc_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "libnvrtc.so.13").write_text("not a library")
    with pytest.raises(KernelError, match=r"^NVRTC does not load: [^\n]*$"):
        Nvrtc(tmp_path / "libnvrtc.so.13")

"""Parsing, compiling, caching and launching kernels, on small kernels written for these tests."""

from __future__ import annotations

import ctypes
import logging
import re
import shutil
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from insta_runtime.native.compilers import HostCompiler, build, find_cached
from insta_runtime.native.kernels import Graph, KernelError, Kernels, Sources, read_sources, source_folder
from insta_runtime.render.sampling import NEAREST
from insta_runtime.warp.nearest import LEAF_DEPTH

LAYOUT = """#pragma once
#include "platform.cuh"
struct Series {
    const float* values;  // (count), or null
    int count;
    float gain;
};
"""
GAIN = '#pragma once\n#include "platform.cuh"\nDEVICE float offset(float x) { return x + float(OFFSET); }\n'
SCALE = """#include "gain.cuh"
#include "layout.cuh"
// Uses a struct and parameters of several types.
KERNEL(64) scale(const Series series, const int shift, float* __restrict__ out) {
    EACH(i, series.count) out[i] = offset(series.gain * series.values[i]) + float(shift);
}
"""
COUNT = """#include "platform.cuh"
#define THREADS 128
KERNEL(THREADS) count_set(const uint* bits, int n, int* total, unsigned long long* least) {
    EACH(i, n) {
        if (bits[i] == 0u) continue;
        add_atomic(total, count_bits(bits[i]));
        min_atomic(least, (unsigned long long)i);
    }
}
KERNEL(THREADS) widen(const storage_t* narrow, float* wide, const byte* mask, int n) {
    EACH(i, n) wide[i] = mask[i] ? load(narrow + i) : 0.0f;
}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the kernels of these tests and the real platform.cuh."""
    code = tmp_path / "code"
    code.mkdir()
    shutil.copy(source_folder() / "platform.cuh", code)
    for name, text in {"layout.cuh": LAYOUT, "gain.cuh": GAIN, "scale.cu": SCALE, "count.cu": COUNT}.items():
        (code / name).write_text(text)
    return code


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TELEPRESENCE_KERNEL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def make(folder: Path) -> Callable[..., Kernels]:
    """Builds `Kernels` from the present sources in ``folder``."""

    def kernels(device: str | torch.device = "cpu", **constants: int) -> Kernels:
        return Kernels(torch.device(device), {"OFFSET": 0, **constants}, Sources(folder))

    return kernels


def _scaled(kernels: Kernels, values: torch.Tensor, gain: float, shift: int) -> torch.Tensor:
    out = torch.full_like(values, torch.nan)
    series = kernels.struct("Series", values=values, count=values.numel(), gain=gain)
    kernels.launch("scale", series, shift, out, items=values.numel())
    return out


class TestSources:
    def test_a_signature_is_read_as_it_is_declared(self, folder: Path) -> None:
        scale = Sources(folder).kernels["scale"]
        assert (scale.module, scale.threads) == ("scale", 64)
        assert [(p.type, p.name, p.pointer) for p in scale.parameters] == [
            ("Series", "series", False),
            ("int", "shift", False),
            ("float", "out", True),
        ]
        count = Sources(folder).kernels["count_set"]
        assert (count.module, count.threads) == ("count", 128)
        assert [p.type for p in count.parameters] == ["uint", "int", "int", "unsigned long long"]

    def test_a_struct_has_the_layout_that_c_gives_it(self, folder: Path) -> None:
        series = Sources(folder).structures["Series"]
        assert ctypes.sizeof(series) == 16
        assert [(name, getattr(series, name).offset) for name in ("values", "count", "gain")] == [
            ("values", 0),
            ("count", 8),
            ("gain", 12),
        ]

    def test_a_name_belongs_to_one_kernel(self, folder: Path) -> None:
        (folder / "again.cu").write_text(SCALE)
        with pytest.raises(ValueError, match="kernel scale is declared in both"):
            Sources(folder)

    def test_a_declaration_that_cannot_be_parsed_is_named(self, folder: Path) -> None:
        (folder / "odd.cu").write_text('#include "platform.cuh"\nKERNEL(32) odd(float (*f)[3]) {}\n')
        with pytest.raises(ValueError, match="cannot parse the declaration"):
            Sources(folder)

    def test_the_real_kernel_sources_can_be_parsed(self) -> None:
        sources = read_sources()
        assert {"Head", "PoseBuffers", "OccupancyCells", "Rays", "Samples"} <= set(sources.structs)
        assert all(0 < kernel.threads <= 1024 and kernel.threads % 32 == 0 for kernel in sources.kernels.values())


class TestLaunch:
    def test_values_arrive(self, make: Callable[..., Kernels], device: torch.device) -> None:
        values = torch.randn(10_001, device=device)
        torch.testing.assert_close(_scaled(make(device, OFFSET=2), values, 3.0, -1), 3.0 * values + 1.0)

    def test_every_type_of_element_arrives(self, make: Callable[..., Kernels], device: torch.device) -> None:
        kernels = make(device)
        bits = torch.randint(-(2**31), 2**31 - 1, (5000,), dtype=torch.int32, device=device)
        bits[:17] = 0
        total = torch.zeros(1, dtype=torch.int32, device=device)
        least = torch.full((1,), 2**62, dtype=torch.int64, device=device)
        kernels.launch("count_set", bits, 5000, total, least, items=5000)
        expected = sum(bin(word & 0xFFFFFFFF).count("1") for word in bits.tolist())
        assert (int(total), int(least)) == (expected, 17)

        narrow = torch.randn(300, device=device).to(kernels.storage)
        mask = (torch.rand(300, device=device) < 0.5).to(torch.uint8)
        wide = torch.full((300,), torch.nan, device=device)
        kernels.launch("widen", narrow, wide, mask, 300, items=300)
        torch.testing.assert_close(wide, narrow.float() * mask)

    def test_nothing_is_launched_over_nothing(self, make: Callable[..., Kernels], device: torch.device) -> None:
        assert _scaled(make(device), torch.empty(0, device=device), 1.0, 0).numel() == 0

    def test_a_bound_call_reads_its_tensors_at_each_call(
        self, make: Callable[..., Kernels], device: torch.device
    ) -> None:
        kernels = make(device)
        values, out = torch.ones(100, device=device), torch.empty(100, device=device)
        call = kernels.bind("scale", kernels.struct("Series", values=values, count=100, gain=2.0), 0, out, items=100)
        for value in (1.0, 5.0):
            values.fill_(value)
            out.fill_(torch.nan)
            call()
            assert (out == 2.0 * value).all()

    def test_threads_launch_at_once(self, make: Callable[..., Kernels], device: torch.device) -> None:
        kernels = make(device)
        wrong: list[float] = []

        def work(gain: float) -> None:
            values = torch.randn(1000, device=device)
            results = [_scaled(kernels, values, gain, 0) for _ in range(20)]
            wrong.extend(float((result - gain * values).abs().max()) for result in results)

        threads = [threading.Thread(target=work, args=(float(n),)) for n in range(1, 5)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(wrong) == 80
        assert max(wrong) == 0.0

    def test_a_graph_does_the_work_once_a_call(self, make: Callable[..., Kernels], device: torch.device) -> None:
        kernels = make(device)
        total = torch.zeros(1, dtype=torch.int32, device=device)
        least = torch.zeros(1, dtype=torch.int64, device=device)
        call = kernels.bind("count_set", torch.ones(10, dtype=torch.int32, device=device), 10, total, least, items=10)
        stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        if stream is not None:
            stream.wait_stream(torch.cuda.current_stream(device))
        graph = Graph(call, stream)
        for calls in range(1, 5):
            graph()
            if stream is not None:
                stream.synchronize()
            assert int(total) == 10 * calls

    def test_a_profiler_range_costs_nothing_without_a_profiler(self, make: Callable[..., Kernels]) -> None:
        kernels = make()
        assert kernels.range("march") is kernels.range("field")


class TestChecks:
    @pytest.fixture
    def kernels(self, make: Callable[..., Kernels]) -> Kernels:
        return make()

    @pytest.mark.parametrize(
        ("out", "what"),
        [
            (torch.empty(8, dtype=torch.float64), "float64"),
            (torch.empty(8, dtype=torch.int32), "int32"),
            (torch.empty(8, 2)[:, 0], "contiguous"),
            (torch.empty(8, device="meta"), "meta"),
            (7, "int"),
        ],
    )
    def test_a_wrong_array_is_refused(self, kernels: Kernels, out: torch.Tensor, what: str) -> None:
        series = kernels.struct("Series", values=torch.zeros(8), count=8, gain=1.0)
        with pytest.raises(TypeError, match=what):
            kernels.launch("scale", series, 0, out, items=8)

    @pytest.mark.parametrize("shift", [0.5, "1", None, torch.tensor(1)])
    def test_a_wrong_number_is_refused(self, kernels: Kernels, shift: object) -> None:
        series = kernels.struct("Series", values=torch.zeros(8), count=8, gain=1.0)
        with pytest.raises(TypeError, match="shift"):
            kernels.launch("scale", series, shift, torch.empty(8), items=8)

    def test_a_wrong_struct_is_refused(self, kernels: Kernels, folder: Path) -> None:
        with pytest.raises(TypeError, match="series"):
            kernels.launch("scale", 3, 0, torch.empty(8), items=8)
        with pytest.raises(TypeError, match="has the fields"):
            kernels.struct("Series", values=None, count=0)
        with pytest.raises(TypeError, match="values"):
            kernels.struct("Series", values=torch.zeros(8, dtype=torch.float16), count=8, gain=1.0)
        (folder / "layout.cuh").write_text(LAYOUT.replace("Series", "Other") + LAYOUT.removeprefix("#pragma once\n"))
        other = Kernels(torch.device("cpu"), {}, Sources(folder)).struct("Other", values=None, count=0, gain=1.0)
        with pytest.raises(TypeError, match="Series"):
            kernels.launch("scale", other, 0, torch.empty(8), items=8)

    def test_arguments_are_counted(self, kernels: Kernels) -> None:
        with pytest.raises(TypeError, match="takes 3 arguments; given were 1"):
            kernels.launch("scale", 1, items=8)


class TestCache:
    def test_a_module_is_compiled_once(self, make: Callable[..., Kernels], cache: Path) -> None:
        first, again = make(), make()
        first.prepare()
        again.prepare(["scale"])
        assert [(a.module, a.cached) for a in first.report()] == [("count", False), ("scale", False)]
        (found,) = again.report()
        assert (found.module, found.cached) == ("scale", True)
        assert found.path.parent == cache
        assert found.seconds > 0, "the time of the original compilation"
        assert len(list(cache.iterdir())) == 2

    def test_the_compiled_modules_can_be_listed_without_compiling(
        self, make: Callable[..., Kernels], cache: Path
    ) -> None:
        make().prepare(["count"])
        found = make().compiled()
        assert found["scale"] is None
        assert found["count"] is not None
        assert len(list(cache.iterdir())) == 1

    def test_an_edited_header_means_a_new_compilation(self, make: Callable[..., Kernels], folder: Path) -> None:
        make().prepare()
        (folder / "gain.cuh").write_text(GAIN.replace("x + ", "x - "))
        assert {name: found is not None for name, found in make().compiled().items()} == {"count": True, "scale": False}
        values = torch.randn(10)
        assert torch.equal(_scaled(make(OFFSET=1), values, 1.0, 0), values - 1.0)

    def test_a_constant_affects_only_the_modules_that_use_it(self, make: Callable[..., Kernels]) -> None:
        make().prepare()
        assert {name: found is not None for name, found in make(OFFSET=3).compiled().items()} == {
            "count": True,
            "scale": False,
        }
        assert make(UNUSED=1).compiled()["scale"] is not None

    def test_another_compiler_means_a_new_compilation(self, make: Callable[..., Kernels]) -> None:
        program = make().sources.program("count", {})
        compiler = HostCompiler()
        build(program, compiler)
        assert find_cached(program, compiler) is not None
        compiler.version += " (patched)"
        assert find_cached(program, compiler) is None

    @pytest.mark.parametrize("damage", [b"", b"garbage", None])
    def test_a_damaged_file_is_compiled_again(
        self, make: Callable[..., Kernels], cache: Path, damage: bytes | None, caplog: pytest.LogCaptureFixture
    ) -> None:
        build(make().sources.program("scale", {"OFFSET": 0}), HostCompiler())  # unlike prepare(), loads nothing
        (file,) = cache.iterdir()
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2] if damage is None else damage)
        with caplog.at_level(logging.WARNING):
            kernels = make()
            assert torch.equal(_scaled(kernels, torch.ones(5), 2.0, 1), torch.full((5,), 3.0))
        assert [a.cached for a in kernels.report()] == [False]
        assert [record.getMessage() for record in caplog.records] == [
            f"the compiled module scale in {cache} is damaged and is compiled again"
        ]
        assert make().compiled()["scale"] is not None

    def test_an_unwritable_cache_is_reported_once(self, folder: Path, tmp_path: Path) -> None:
        """In a separate process, to which the temporary folder, the single warning and the cleanup belong."""
        blocked = tmp_path / "blocked"
        blocked.write_text("a file where the folder should be")
        program = f"""
import logging, torch
from pathlib import Path
logging.basicConfig(format="%(message)s")
from insta_runtime.native.kernels import Kernels, Sources
for _ in range(2):
    kernels = Kernels(torch.device("cpu"), {{"OFFSET": 0}}, Sources(Path({str(folder)!r})))
    kernels.prepare()
    print(*(f"{{a.cached}} {{a.path.parent}}" for a in kernels.report()), sep="\\n")
"""
        env = {"PATH": "/usr/bin:/bin", "TELEPRESENCE_KERNEL_CACHE": str(blocked), "TMPDIR": str(tmp_path)}
        done = subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, text=True, check=True)
        lines = done.stdout.splitlines()
        assert [line.split()[0] for line in lines] == ["False", "False", "True", "True"]
        assert done.stderr.count("cannot be cached in") == 1
        assert "TELEPRESENCE_KERNEL_CACHE" in done.stderr
        assert not list(tmp_path.glob("telepresence-*"))

    def test_others_cannot_write_into_the_cache(self, make: Callable[..., Kernels], cache: Path) -> None:
        make().prepare(["count"])
        assert not stat.S_IMODE(cache.stat().st_mode) & 0o022

    def test_processes_that_compile_at_once_do_not_disturb_each_other(self, folder: Path, cache: Path) -> None:
        program = f"""
import torch
from pathlib import Path
from insta_runtime.native.kernels import Kernels, Sources
kernels = Kernels(torch.device("cpu"), {{"OFFSET": 0}}, Sources(Path({str(folder)!r})))
kernels.prepare()
"""
        running = [subprocess.Popen([sys.executable, "-c", program]) for _ in range(3)]
        assert [process.wait(timeout=600) for process in running] == [0, 0, 0]
        assert len(list(cache.iterdir())) == 2


class TestRefusals:
    def test_without_a_compiler(self, make: Callable[..., Kernels], monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PATH", "")
        monkeypatch.delenv("CXX", raising=False)
        with pytest.raises(KernelError, match=r"^no C\+\+ compiler was found: install g\+\+ [^\n]*$"):
            make().prepare()
        monkeypatch.setenv("CXX", "no-such-compiler -m64")
        with pytest.raises(KernelError, match=r"^CXX names 'no-such-compiler', which was not found: [^\n]*$"):
            make().prepare()

    def test_a_compiler_that_does_not_run(self, make: Callable[..., Kernels], monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("CXX", "/bin/false")
        with pytest.raises(KernelError, match=r"^the C\+\+ compiler /bin/false cannot be run[^\n]*$"):
            make().prepare()

    def test_code_that_does_not_compile(self, make: Callable[..., Kernels], folder: Path) -> None:
        (folder / "scale.cu").write_text(SCALE.replace("offset(", "no_such_word("))
        with pytest.raises(KernelError) as refusal:
            make().prepare()
        assert re.fullmatch(r"\S+ cannot compile scale\.cu: .*no_such_word.*", str(refusal.value))
        assert "In function" in refusal.value.__notes__[0]  # the complete output of the compiler, for developers


def test_the_gpu_marker_selects_and_skips(root: Path) -> None:
    """``-m gpu`` selects only the tests that need a GPU; without a GPU they are skipped with a reason."""
    this = "tests/insta_runtime/native/test_kernels.py::TestLaunch::test_values_arrive"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", this]

    def outcome(*options: str) -> str:
        return subprocess.run([*command, *options], cwd=root, capture_output=True, text=True, check=False).stdout

    selected = outcome("-m", "gpu", "--collect-only")
    assert "[cuda]" in selected
    assert "[host]" not in selected
    result = outcome("-m", "gpu", "-rs")
    if torch.cuda.is_available():
        assert "1 passed, 1 deselected" in result
    else:
        assert "needs an NVIDIA GPU" in result
        assert "1 skipped, 1 deselected" in result
    assert "1 passed, 1 deselected" in outcome("-m", "not gpu")


def test_numbers_that_kernels_and_the_torch_reference_both_define_are_equal() -> None:
    def defined(name: str, file: str) -> float:
        found = re.search(rf"#define {name} ([\d.]+)", read_sources().text[file])
        assert found is not None
        return float(found.group(1))

    assert defined("MAX_LEAVES", "candidates.cu") == 1 << LEAF_DEPTH
    assert defined("NEAREST", "rays.cuh") == NEAREST

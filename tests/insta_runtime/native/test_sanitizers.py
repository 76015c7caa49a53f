"""The kernel tests on the CPU, built with AddressSanitizer and UndefinedBehaviorSanitizer.

In separate processes, because the sanitizer libraries must be loaded before everything else.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

# Only small fields and two kinds of warp, because every other configuration would be compiled again.
LEFT_OUT = ("default", "cpu", "paper", "deep", "flat", "triangle", "area", "lips", "holding", "loose")
# Of tests that run the same code over more points or steps, only the smaller one.
LARGE = (
    "strong_expressions",
    "large_cells",
    "true_nearest",
    "motions_of_mouth",
    "every_blend",
    "1048576",
    "test_paper",
)
HOST = " and ".join(["host", *(f"not host-{name}" for name in LEFT_OUT), *(f"not {name}" for name in LARGE)])
WRONG = {
    "reads beyond an array": ("n + 1", "x[i]", "heap-buffer-overflow"),
    "overflows a signed number": ("n", "float(int(x[i]) + 2147483647)", "signed integer overflow"),
    "shifts too far": ("n", "float(1 << (40 + i))", "shift exponent"),
}


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Environment of a process with sanitized CPU kernels."""
    if sys.platform != "linux" or shutil.which("g++") is None:
        pytest.skip("needs g++ on Linux")
    found = [
        subprocess.run(["g++", f"-print-file-name={name}"], capture_output=True, text=True, check=True).stdout.strip()
        for name in ("libasan.so", "libubsan.so")
    ]
    if not all(Path(name).is_absolute() for name in found):
        pytest.skip("needs the sanitizers' libraries of g++: apt-get install libgcc-12-dev")
    return {
        **os.environ,
        "LD_PRELOAD": " ".join(str(Path(name).resolve()) for name in found),
        "ASAN_OPTIONS": "detect_leaks=0",  # Python and torch free much memory only at the end of the process
        "CXX": "g++",
        "TELEPRESENCE_KERNEL_SANITIZE": "1",
        "TELEPRESENCE_KERNEL_CACHE": str(tmp_path_factory.mktemp("sanitized")),
    }


@pytest.mark.parametrize("what", WRONG)
def test_memory_errors_are_detected(what: str, environment: dict[str, str], root: Path, tmp_path: Path) -> None:
    count, value, message = WRONG[what]
    shutil.copy(root / "cuda" / "platform.cuh", tmp_path)
    (tmp_path / "wrong.cu").write_text(
        '#include "platform.cuh"\n'
        f"KERNEL(32) wrong(const float* x, float* y, int n) {{ EACH(i, {count}) y[i] = {value}; }}\n"
    )
    program = f"""
import torch
from pathlib import Path
from insta_runtime.native.kernels import Kernels, Sources
kernels = Kernels(torch.device("cpu"), {{}}, Sources(Path({str(tmp_path)!r})))
kernels.launch("wrong", torch.ones(64), torch.ones(65), 64, items=64)
"""
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert message in done.stderr


@pytest.mark.timeout(3600)
def test_the_kernel_suite_is_clean(environment: dict[str, str], root: Path) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", HOST, "tests/insta_runtime/native"]
    done = subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]

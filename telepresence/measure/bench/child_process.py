"""Measurements that need a process of their own: the cold start, and the host backend on two threads.

Run as a program (``python -m telepresence.measure.bench.child_process``), this module measures and prints JSON as the
last line of its standard output.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Final

from insta_runtime.errors import UserError

HOST_SIZE: Final = 128
"""Side in pixels of the frames that are measured on the processor alone."""
HOST_THREADS: Final = 2
"""Number of threads of the measurement on the processor alone."""
TIMEOUT_S: Final = 300
"""Seconds after which a measuring process is stopped."""


def first_frame_s(avatar: Path, tracked: Path, size: int, device: str, backend: str, *, cold: bool) -> dict[str, Any]:
    """Time from the start of a new process until its first rendered frame, in seconds.

    ``cold`` starts it with an empty kernel cache, else it uses the present one.  Keys: ``seconds``; its parts
    ``imports``, ``avatar``, ``kernels`` and ``picture`` (the frame); ``compiled``, the number of modules that were not
    in the cache; ``backend``.  UserError if the process fails.
    """
    with tempfile.TemporaryDirectory(prefix="telepresence-") as empty:
        began = time.perf_counter()
        cache = {"TELEPRESENCE_KERNEL_CACHE": empty} if cold else {}
        answer = _child(["first-frame", str(avatar), str(tracked), str(size), device, backend], cache)
    return {"seconds": time.perf_counter() - began, **answer}


def host_figures(avatar: Path, tracked: Path, backend: str) -> dict[str, Any]:
    """Milliseconds of a 128 x 128 frame and of a training step on two threads of the processor.

    Keys: ``backend``, ``frame_ms``, ``step_ms``, and for the torch reference ``torch_frame_ms`` and ``torch_step_ms``.
    UserError if the process fails.
    """
    two = {"OMP_NUM_THREADS": str(HOST_THREADS), "CUDA_VISIBLE_DEVICES": ""}
    return _child(["host", str(avatar), str(tracked), str(HOST_SIZE), "cpu", backend], two)


def _child(arguments: list[str], environment: dict[str, str]) -> dict[str, Any]:
    """Run this module in a new process and return the JSON that it prints.  UserError if it fails."""
    command = [sys.executable, "-m", "telepresence.measure.bench.child_process", *arguments]
    root = str(Path(__file__).resolve().parents[3])
    paths = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
    try:
        done = subprocess.run(  # noqa: S603 - this program
            command,
            env={**os.environ, "PYTHONPATH": paths, **environment},
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise UserError(f"the measurement {arguments[0]} did not end within {TIMEOUT_S} s") from None
    try:
        answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        last = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        raise UserError(f"the measurement {arguments[0]} failed: {last}") from None
    return answer


def _first_frame(avatar: Path, tracked: Path, size: int, device: str, backend: str) -> dict[str, Any]:
    ends = [time.perf_counter()]

    def part() -> float:
        ends.append(time.perf_counter())
        return ends[-1] - ends[-2]

    from insta_runtime.backends import choose_backend, make_renderer
    from telepresence.measure.bench.benchmark_avatar import open_benchmark_avatar
    from telepresence.measure.bench.frame import make_draw

    parts = {"imports": part()}
    subject = open_benchmark_avatar(avatar, tracked, size, device)
    parts["avatar"] = part()
    chosen = choose_backend(backend, subject.model)
    parts["kernels"] = part()
    make_draw(make_renderer(subject.model, chosen), subject.camera)(subject.states[0])
    parts["picture"] = part()
    compiled = sum(not artifact.cached for artifact in chosen.kernels.report()) if chosen.kernels else 0
    return {"backend": chosen.kind, **parts, "compiled": compiled}


def _host(avatar: Path, tracked: Path, size: int, device_name: str, backend: str) -> dict[str, Any]:
    import torch

    from insta_runtime.backends import choose_backend, make_renderer, make_trainer
    from insta_runtime.learn.torch_trainer import TorchTrainer
    from insta_runtime.render.renderer import Renderer
    from telepresence.measure.bench.benchmark_avatar import fill_replay, open_benchmark_avatar
    from telepresence.measure.bench.frame import make_draw
    from telepresence.measure.bench.timing import cycled, median, timed_ms

    torch.set_num_threads(HOST_THREADS)
    subject = open_benchmark_avatar(avatar, tracked, size, device_name)
    model, device = subject.model, subject.device
    chosen = choose_backend(backend, model)
    figures: dict[str, Any] = {"backend": chosen.kind}
    pairs = [
        (
            "",
            make_renderer(model, chosen),
            make_trainer(subject.untouched_model(), chosen),
            8 if chosen.kind == "torch" else 40,
        )
    ]
    if chosen.kind != "torch":
        pairs.append(("torch_", Renderer(model), TorchTrainer(subject.untouched_model()), 8))
    for prefix, renderer, trainer, count in pairs:
        draw = make_draw(renderer, subject.camera)
        figures[f"{prefix}frame_ms"] = median(timed_ms(draw, cycled(subject.states, count), device))
        fill_replay(trainer, subject, 16)
        figures[f"{prefix}step_ms"] = median(timed_ms(lambda _: trainer.step(), range(count + 8), device, warm=10))  # noqa: B023
    if chosen.kind == "torch":
        figures.update(torch_frame_ms=figures["frame_ms"], torch_step_ms=figures["step_ms"])
    return figures


def _main(what: str, avatar: str, tracked: str, size: str, device: str, backend: str) -> None:
    measure = {"first-frame": _first_frame, "host": _host}[what]
    answer = measure(Path(avatar), Path(tracked), int(size), device, backend)
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()
    os._exit(0)  # skip the clean-up, which would count as start time


if __name__ == "__main__":
    try:
        _main(*sys.argv[1:])
    except UserError as error:
        sys.exit(str(error))

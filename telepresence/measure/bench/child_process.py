"""What must be measured in a process of its own: a cold start, and the host build on two threads.

As a program (``python -m telepresence.measure.bench.child_process``) it is that process; its last line on stdout is the answer.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from insta_runtime.errors import UserError

HOST_SIZE, HOST_THREADS = 128, 2
TIMEOUT_S = 300


def first_frame_s(avatar: Path, tracked: Path, size: int, device: str, backend: str, *, cold: bool) -> dict[str, Any]:
    """Start a process that draws one picture: ``seconds`` from its start until the picture is there, and ``backend``.

    Of the seconds, ``imports``, ``avatar``, ``kernels`` and ``picture`` are those parts; ``compiled`` modules were not
    in the cache.  ``cold``: with an empty cache of kernels, else with the present one.  UserError if it fails.
    """
    with tempfile.TemporaryDirectory(prefix="telepresence-") as empty:
        began = time.perf_counter()
        cache = {"TELEPRESENCE_KERNEL_CACHE": empty} if cold else {}
        answer = _child(["first-frame", str(avatar), str(tracked), str(size), device, backend], cache)
    return {"seconds": time.perf_counter() - began, **answer}


def host_figures(avatar: Path, tracked: Path, backend: str) -> dict[str, Any]:
    """Milliseconds of a picture of 128 x 128 and of a training step on two threads of the CPU; ``backend``'s, torch's.

    Keys ``backend``, ``frame_ms``, ``step_ms``, ``torch_frame_ms``, ``torch_step_ms``.  UserError if it fails.
    """
    two = {"OMP_NUM_THREADS": str(HOST_THREADS), "CUDA_VISIBLE_DEVICES": ""}
    return _child(["host", str(avatar), str(tracked), str(HOST_SIZE), "cpu", backend], two)


def _child(arguments: list[str], environment: dict[str, str]) -> dict[str, Any]:
    """The answer of this module in a new process."""
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
        raise UserError(f"{arguments[0]}: no answer within {TIMEOUT_S} s") from None
    try:
        answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        last = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        raise UserError(f"{arguments[0]}: {last}") from None
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
    os._exit(0)  # the answer is what is timed: leave without tearing everything down


if __name__ == "__main__":
    try:
        _main(*sys.argv[1:])
    except UserError as error:
        sys.exit(str(error))

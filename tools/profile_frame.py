"""Capture the inputs of one rendered frame, and render it again for a profiler.

    python tools/profile_frame.py capture AVATAR TRACKED --frame 60 --out frame.safetensors
    python tools/profile_frame.py replay frame.safetensors --times 200
    ncu --profile-from-start off python tools/profile_frame.py replay frame.safetensors --times 3 --bare
    nsys profile --capture-range cudaProfilerApi python tools/profile_frame.py replay frame.safetensors --bare

The file holds everything that a rendered frame depends on: head state, camera, identity, configuration, occupancy and
weights.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

os.environ.setdefault("TELEPRESENCE_NVTX", "1")  # read when kernels are compiled

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from insta_runtime.avatar import Avatar, choose_device
from insta_runtime.backends import NAMES, choose_backend, make_renderer
from insta_runtime.config import AvatarConfig, from_dict, to_dict
from insta_runtime.errors import UserError
from insta_runtime.head import load_head
from insta_runtime.render.model import AvatarModel
from insta_runtime.render.renderer import load_snapshot, take_snapshot
from insta_runtime.tracked import TrackedFolder
from insta_runtime.types import Camera, HeadState
from telepresence.measure.bench.frame import make_draw, samples_per_pixel
from telepresence.measure.bench.stages import device_stages, host_stages, torch_frame_stages
from telepresence.measure.bench.timing import percentiles, synchronise, timed_ms

WARM = 10  # frames rendered before the profiler starts
STATE = "state."  # prefix of the head state's tensors in the file


def capture(avatar: Path, tracked: Path, frame: int, size: int, out: Path) -> None:
    """Write the inputs of frame number ``frame`` of the tracked folder, for rendering at ``size`` x ``size`` pixels."""
    folder = TrackedFolder.open(tracked)
    if frame not in folder.frames:
        raise UserError(
            f"no face was tracked in frame {frame} of {tracked}: choose another --frame, below {len(folder)}"
        )
    model = Avatar.load(avatar, load_head(folder.head_file), "cpu").model
    state, camera = folder.take.states[frame], folder.take.camera.scaled(size, size)
    header = {
        "head": str(folder.head_file) if folder.head_file else None,
        "config": to_dict(model.config),
        "camera": {name: getattr(camera, name) for name in ("fx", "fy", "cx", "cy", "width", "height")},
        "frame": frame,
    }
    tensors = take_snapshot(model)
    tensors |= {STATE + name: torch.from_numpy(np.ascontiguousarray(a)) for name, a in state.arrays().items()}
    tensors["shape"] = torch.from_numpy(np.ascontiguousarray(model.shape, dtype=np.float32))
    save_file(tensors, out, {"header": json.dumps(header)})
    rays = samples_per_pixel(model, state, camera)
    hit, samples = int((rays > 0).sum()), int(rays.sum())
    print(f"{out}: {size} x {size} px, {hit} rays hit, {samples} samples, {samples / max(1, hit):.1f} a ray")


def restore(file: Path, device: torch.device) -> tuple[AvatarModel, HeadState, Camera]:
    """The model, state and camera of a captured frame."""
    with safe_open(file, "pt") as content:
        header: dict[str, Any] = json.loads(content.metadata()["header"])
        tensors = {name: content.get_tensor(name) for name in content.keys()}  # noqa: SIM118 (not a dict)
    head = load_head(Path(header["head"]) if header["head"] else None)
    model = AvatarModel(head, tensors.pop("shape").numpy(), from_dict(AvatarConfig, header["config"]), device)
    state = HeadState(**{n.removeprefix(STATE): tensors.pop(n).numpy() for n in list(tensors) if n.startswith(STATE)})
    load_snapshot(model, tensors)
    return model, state, Camera(**header["camera"])


def replay(file: Path, times: int, device: str, backend: str, bare: bool) -> None:
    """Render a captured frame ``times`` times; unless ``bare``, also print the time of each stage."""
    model, state, camera = restore(file, choose_device(device))
    chosen = choose_backend(backend, model)
    print(f"{chosen.kind}: {chosen.reason}")
    draw, on_gpu = make_draw(make_renderer(model, chosen), camera), model.device.type == "cuda"
    timed_ms(draw, [state] * WARM, model.device)
    if on_gpu:
        torch.cuda.profiler.start()
    with torch.cuda.nvtx.range("frames") if on_gpu else torch.no_grad():
        measured = timed_ms(draw, [state] * times, model.device, warm=0)
    synchronise(model.device)
    if on_gpu:
        torch.cuda.profiler.stop()
    print("frame, ms: " + ", ".join(f"{name} {value:.3f}" for name, value in percentiles(measured).items()))
    if bare:
        return
    if chosen.kernels is None:
        stages = torch_frame_stages(model, [state, state], camera, min(times, 10))
    elif on_gpu:
        stages = device_stages(lambda: draw(state), chosen.kernels, times)
    else:
        stages = host_stages(model, chosen.kernels, [state, state], camera, times)
    for name, ms in stages.items():
        print(f"{name:>16} {ms:8.4f} ms")
    print(f"{'sum':>16} {sum(stages.values()):8.4f} ms")


def main() -> None:
    """Parse the arguments and run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    take = commands.add_parser("capture")
    take.add_argument("avatar", type=Path)
    take.add_argument("tracked", type=Path)
    take.add_argument("--frame", type=int, default=0, help="number of the frame in the folder")
    take.add_argument("--size", type=int, default=512)
    take.add_argument("--out", type=Path, required=True)
    again = commands.add_parser("replay")
    again.add_argument("file", type=Path)
    again.add_argument("--times", type=int, default=100)
    again.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    again.add_argument("--backend", default="auto", choices=NAMES)
    again.add_argument("--bare", action="store_true", help="render only, without stage times: for a profiler")
    arguments = vars(parser.parse_args())
    try:
        if arguments.pop("command") == "capture":
            capture(**arguments)
        else:
            replay(**arguments)
    except UserError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()

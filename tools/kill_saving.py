"""Kill a process that learns and saves, at random moments and many times: the avatar that is left must load.

    python tools/kill_saving.py --kills 50 --json killed.json

A small avatar is learned on the CPU and saved without a pause.  Each process gets SIGKILL during a step or a save; then
the avatar is loaded as the next call would load it, and the next process continues with it.  Exit status 1 if an avatar
cannot be loaded, or is older than the last save that was reported.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"  # no other thread may run when the process is forked

import argparse
import json
import logging
import random
import signal
import sys
import tempfile
import time
from pathlib import Path
from types import ModuleType
from typing import Any, Final

import numpy as np
import torch

from insta_runtime.avatar import Avatar, is_stored
from insta_runtime.errors import UserError
from insta_runtime.files import partial_path
from insta_runtime.head import HeadModel, load_head
from insta_runtime.types import Camera, HeadState, Observation
from telepresence.config import Config, load_config
from telepresence.learning import saving, snapshot_gate
from telepresence.learning.learner import Learner

SMALL: Final = (
    "avatar.warp.cell=0.025",
    "avatar.radiance.levels=3",
    "avatar.radiance.log2_entries=12",
    "avatar.radiance.hidden=16",
    "avatar.occupancy.resolution=16",
    "avatar.learn.rays=128",
    "avatar.learn.frames=1",
    "avatar.learn.size=32",
    "avatar.torso.size=64",
)
FIRST_S: Final = 60.0
"""Seconds within which a process must save for the first time."""

LATEST_S: Final = 0.5
"""Longest time, in seconds, from the first save to the kill."""


def main() -> None:
    """Parse the arguments, measure, print and write the figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    with tempfile.TemporaryDirectory() as folder:
        figures = measure(Path(folder) / "avatar", arguments.kills, random.Random(arguments.seed))
    print(json.dumps(figures))
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    sys.exit(1 if figures["lost"] or figures["older"] else 0)


def measure(path: Path, kills: int, lot: random.Random) -> dict[str, Any]:
    """Learn at ``path`` with ``kills`` processes that are killed one after the other.

    Returns counts: ``lost`` avatars that could not be loaded, ``older`` than the last save, ``within_a_save`` kills
    that left a partly written file, ``previous`` avatars loaded from the backup, ``without_training`` avatars whose
    training could not continue; ``steps`` is the number of training steps over all processes.
    """
    head, config = load_head(), load_config("cpu", SMALL, "cpu")
    figures = dict.fromkeys(("kills", "lost", "older", "within_a_save", "previous", "without_training", "steps"), 0)
    for _ in range(kills):
        saved = run_and_kill(path, head, config, lot)
        figures["kills"] += 1
        figures["within_a_save"] += any(
            partial_path(file).exists() for file in (path / "avatar.safetensors", saving.training_file(path))
        )
        try:
            avatar = Avatar.load(path, head, "cpu")
        except UserError as error:
            print(error, file=sys.stderr)
            figures["lost"] += 1
            continue
        figures["older"] += avatar.steps < saved
        figures["previous"] += avatar.spoilt
        figures["without_training"] += saving.load_training_state(path, avatar) is None
        figures["steps"] = avatar.steps
    return figures


def run_and_kill(path: Path, head: HeadModel, config: Config, lot: random.Random) -> int:
    """Run one process and kill it; the number of steps of the last avatar that it reported as saved."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            learn(path, head, config, writing)
        finally:
            os._exit(1)
    os.close(writing)
    with os.fdopen(reading, "rb", buffering=0) as pipe:
        signal.alarm(round(FIRST_S))  # ends this process if no save is reported
        first = pipe.readline()
        signal.alarm(0)
        time.sleep(lot.uniform(0.0, LATEST_S))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        rest = pipe.read() or b""
    if not first:
        raise SystemExit("the process that learns has failed: its error is printed above")
    # The last line may be incomplete.
    return int([first, *rest.splitlines(keepends=True)[: rest.count(b"\n")]][-1])


def learn(path: Path, head: HeadModel, config: Config, report: int) -> None:
    """Learn and save until killed; writes the steps of each saved avatar to the file descriptor ``report``."""
    _replace_constants(snapshot_gate, EARLY_PUBLISH_S=0.0, PUBLISH_S=0.0, MEASURE_TIME_SHARE=1.0)
    _replace_constants(saving, SAVE_TIME_SHARE=1.0)
    picture = Camera(40.0, 40.0, 16.0, 16.0, 32, 32)
    stored = is_stored(path)
    shape = np.zeros(len(head.shape_dirs), np.float32)
    avatar = Avatar.load(path, head, "cpu") if stored else Avatar.create(head, shape, picture, config.avatar, "cpu")
    learner = Learner(avatar, path, freeze=False, backend="host", autosave_s=0.0)
    state = HeadState(
        np.zeros(len(head.expression_names), np.float32),
        rotation=np.array([np.pi, 0.0, 0.0], np.float32),
        translation=np.array([0.0, 0.0, 0.6], np.float32),
    )
    noise = np.random.default_rng(0)
    for number in range(4):
        rgb = noise.integers(0, 256, (32, 32, 3), dtype=np.uint8)
        learner.trainer.add(Observation(number, rgb, np.full((32, 32), 255, np.uint8), picture, state))
    reported = avatar.steps
    while learner.save_error is None:
        learner.run_once()
        learner.autosave(time.monotonic())
        if learner.saved_steps != reported:
            reported = learner.saved_steps
            os.write(report, b"%d\n" % reported)
    raise SystemExit(learner.save_error)


def _replace_constants(module: ModuleType, **values: float) -> None:
    """Set constants of a module, which must exist."""
    if missing := values.keys() - vars(module).keys():
        raise AttributeError(f"{module.__name__} has no {', '.join(sorted(missing))}")
    vars(module).update(values)


if __name__ == "__main__":
    main()

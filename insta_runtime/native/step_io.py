"""Transfers between host and device in a training step: inputs of a step, results of finished steps."""

from __future__ import annotations

import math
import time
from collections import deque
from typing import Final

import torch

STEPS_IN_FLIGHT: Final = 2
"""Maximum number of training steps that are queued on a GPU; more would only delay new weights."""
RESULT_INTERVAL: Final = 8
"""Training steps on a GPU between two copies of loss and sample count to the host."""
POLL_S: Final = 1e-4
"""Seconds between two checks whether a queued training step has finished."""

_LOSS = 5  # index of the loss in ``control``, as in cuda/adam.cu
_SAMPLES = 1  # index of the number of samples in ``Samples.totals``


class StepInputs:
    """Inputs of a training step in device memory.

    Attributes:
        control: (8,) float32: rates, bias corrections and averaging decay, in the order of cuda/adam.cu.
        loss: (1,) float32, the element of ``control`` to which the step adds its loss.
        counters: (8,) int32: step number, stored frames, rays per frame, newest frames, pool size (cuda/replay.cu).
    """

    def __init__(self, device: torch.device) -> None:
        on_gpu = device.type == "cuda"
        self._words = torch.zeros(16, dtype=torch.int32, device=device)
        self.control, self.counters = self._words[:8].view(torch.float32), self._words[8:]
        self.loss = self.control[_LOSS : _LOSS + 1]
        # Copies from pinned memory are asynchronous: a row must not be rewritten while its copy may be pending.
        self._rows = torch.zeros((2 * STEPS_IN_FLIGHT, 16), dtype=torch.int32, pin_memory=on_gpu)
        self._sent = 0

    def send(self, control: list[float], counters: list[int]) -> None:
        """Write new inputs on the current stream; ``control`` without a loss resets the loss to its value, zero."""
        row = self._rows[self._sent % len(self._rows)]
        numbers = row.numpy()
        numbers[: len(control)].view("float32")[:] = control
        numbers[8 : 8 + len(counters)] = counters
        self._words.copy_(row, non_blocking=True)
        self._sent += 1


class StepResults:
    """Loss and sample count of finished training steps, read without waiting for the device.

    Also limits the number of queued steps to `STEPS_IN_FLIGHT`.
    """

    def __init__(self, control: torch.Tensor, totals: torch.Tensor, stream: torch.cuda.Stream | None) -> None:
        self._control, self._totals, self._stream = control, totals, stream
        self._rows = torch.zeros((STEPS_IN_FLIGHT + 1, 12), dtype=torch.int32, pin_memory=stream is not None)
        self._queued: deque[torch.cuda.Event] = deque()
        self._copies: deque[tuple[torch.cuda.Event, int, float]] = deque()
        self._steps = 0
        self._newest = (math.nan, 0)

    def on_step_queued(self, ray_share: float) -> None:
        """Register a queued step that draws ``ray_share`` of the rays; waits while too many steps are queued."""
        if self._stream is None:
            self._newest = float(self._control[_LOSS]) / ray_share, int(self._totals[_SAMPLES])
            return
        first = self._steps == 0
        if self._steps % RESULT_INTERVAL == 0:
            number = self._steps // RESULT_INTERVAL % len(self._rows)
            row = self._rows[number]
            row[:8].copy_(self._control.view(torch.int32), non_blocking=True)
            row[8:].copy_(self._totals, non_blocking=True)
            self._copies.append((self._stream.record_event(), number, ray_share))
        self._steps += 1
        self._queued.append(self._stream.record_event())
        while len(self._queued) > (0 if first else STEPS_IN_FLIGHT):
            if self._queued[0].query():
                self._queued.popleft()
            else:
                time.sleep(POLL_S)

    def discard(self) -> None:
        """Discard the results of all steps so far."""
        self._copies.clear()
        self._newest = (math.nan, 0)

    def newest(self) -> tuple[float, int]:
        """Loss and number of samples of the newest finished step whose results have been copied; NaN and 0 if none."""
        while self._copies and self._copies[0][0].query():
            _, number, ray_share = self._copies.popleft()
            row = self._rows[number]
            self._newest = float(row[:8].view(torch.float32)[_LOSS]) / ray_share, int(row[8 + _SAMPLES])
        return self._newest

"""TensorFlow Lite models on LiteRT, Google's runtime for them, which has no network code.

LiteRT runs the model files of MediaPipe without MediaPipe's own library, which sends usage data to its vendor whenever
a task is closed.
"""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from insta_runtime.errors import UserError
from insta_runtime.types import Float32

from .native_stderr import silence_native_stderr

THREADS = 1
"""Number of CPU threads of one model.  A second one saves little time and takes a core from rendering and training."""


class LiteRtModel:
    """TensorFlow Lite model that runs on the CPU, with one float32 input and float32 outputs.  Not thread-safe.

    Attributes:
        shape: shape of the input, without the batch dimension.
    """

    def __init__(self, content: bytes) -> None:
        """Load the content of a ``.tflite`` file.  Raises UserError if LiteRT is missing or cannot run the model."""
        try:
            library: Any = importlib.import_module("ai_edge_litert.interpreter")
        except (ImportError, OSError) as error:
            reason = str(error).splitlines()[0]
            raise UserError(
                f"tracking needs LiteRT ({reason}): pip install ai-edge-litert, or use --source synthetic"
            ) from None
        try:
            with silence_native_stderr():
                self._interpreter = library.Interpreter(model_content=content, num_threads=THREADS)
                self._interpreter.allocate_tensors()
        except (ValueError, RuntimeError) as error:
            reason = str(error).splitlines()[0]
            raise UserError(f"LiteRT cannot run a face model ({reason}): pip install -U ai-edge-litert") from None
        entry = self._interpreter.get_input_details()[0]
        self._input = int(entry["index"])
        self._outputs = {str(one["name"]): int(one["index"]) for one in self._interpreter.get_output_details()}
        self.shape = tuple(int(length) for length in entry["shape"][1:])

    def __call__(self, values: NDArray[np.float32]) -> dict[str, Float32]:
        """Run the model on one input of shape `shape`; returns the outputs by tensor name, with batch dimension 1."""
        self._interpreter.set_tensor(self._input, np.ascontiguousarray(values[None], dtype=np.float32))
        self._interpreter.invoke()
        return {name: self._interpreter.get_tensor(index) for name, index in self._outputs.items()}

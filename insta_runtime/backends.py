"""Backends that render and train avatars: native kernels on a GPU or a CPU, or plain torch; `choose_backend`."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

from insta_runtime.errors import UserError
from insta_runtime.field.tcnn import TcnnField
from insta_runtime.learn.torch_trainer import TorchTrainer
from insta_runtime.native.constants import avatar_constants
from insta_runtime.native.field import unsupported
from insta_runtime.native.kernels import KernelError, Kernels
from insta_runtime.native.renderer import NativeRenderer
from insta_runtime.native.trainer import NativeTrainer
from insta_runtime.render.model import use_tcnn
from insta_runtime.render.renderer import Renderer

if TYPE_CHECKING:
    import torch

    from insta_runtime.config import AvatarConfig
    from insta_runtime.learn.trainer_interface import Trainer
    from insta_runtime.render.model import AvatarModel

Kind = Literal["cuda", "host", "torch", "tcnn"]
"""Name of a backend: native kernels on a GPU, native kernels on a CPU, plain torch, tiny-cuda-nn."""
_compiling = threading.Lock()  # concurrent callers compile once, then use the cache

NAMES = ("auto", *get_args(Kind))
"""Names of backends that can be requested; ``auto`` lets `choose_backend` decide."""
AnyRenderer = Renderer | NativeRenderer
"""Renderer of any backend."""


@dataclass(frozen=True)
class Backend:
    """Backend chosen for an avatar model.

    Attributes:
        kind: name of the backend.
        kernels: native kernels, compiled for the model's field and device; None for ``torch`` and ``tcnn``.
        reason: reason for the choice, for the log.
    """

    kind: Kind
    kernels: Kernels | None
    reason: str


def choose_backend(name: str, model: AvatarModel) -> Backend:
    """Choose and prepare the backend ``name`` (one of `NAMES`) for ``model``.

    ``auto`` takes the native kernels of the model's device (``cuda`` or ``host``), or ``torch`` if they cannot be
    compiled or launched; ``tcnn`` for an avatar that was trained with it.  ``tcnn`` for an untrained model replaces the
    model's field.  Raises UserError if the requested backend is unknown or not available for the model.
    """
    on_gpu = model.device.type == "cuda"
    native: Kind = "cuda" if on_gpu else "host"
    if name == "torch":
        return Backend("torch", None, "it was requested")
    if isinstance(model.field, TcnnField):
        if name in ("cuda", "host"):
            raise UserError(f"this avatar was trained with tiny-cuda-nn and needs the tcnn backend, not {name}")
        return Backend("tcnn", None, "the avatar was trained with it")
    if name == "tcnn" and on_gpu:
        if model.learned:
            raise UserError("this avatar was trained without tiny-cuda-nn and cannot use the tcnn backend: choose auto")
        use_tcnn(model)
        return Backend("tcnn", None, "it was requested")
    if name not in NAMES:
        raise UserError(f"unknown backend {name!r}: choose one of {', '.join(NAMES)}")
    if name not in ("auto", native):
        advice = "--set run.device=cpu" if name == "host" else "--set run.device=cuda"
        raise UserError(f"the {name} backend does not run on this device: try {advice}")
    try:
        kernels = _native(model.device, model.config)
    except KernelError as error:
        if name != "auto":
            raise UserError(f"the {name} backend cannot be used: {error}") from None
        return Backend("torch", None, f"no native kernels: {error}")
    return Backend(native, kernels, "it was requested" if name == native else f"kernels for this {_what(model)}")


def warm_up(name: str, device: torch.device, config: AvatarConfig) -> None:
    """Compile the native kernels that `choose_backend` will need for ``name``, ``device`` and ``config``.

    Compilation errors are ignored here; `choose_backend` reports them.
    """
    if name in ("auto", "cuda", "host"):
        with suppress(KernelError):
            _native(device, config)


def make_renderer(
    model: AvatarModel, backend: Backend, *, urgent: bool = True, clock: Callable[[], float] = time.monotonic
) -> AnyRenderer:
    """Make the renderer of ``model`` on the given backend, with its own copy of the weights.

    Args:
        model: the avatar.
        backend: result of `choose_backend`.
        urgent: give its work priority over other work on the device, if supported.
        clock: monotonic time in seconds, for crossfades between snapshots.
    """
    if backend.kernels is None:
        return Renderer(model, clock)
    return NativeRenderer(model, backend.kernels, urgent=urgent, clock=clock)


def make_trainer(model: AvatarModel, backend: Backend) -> Trainer:
    """Make the trainer of ``model`` on the given backend."""
    return TorchTrainer(model) if backend.kernels is None else NativeTrainer(model, backend.kernels)


def _native(device: torch.device, config: AvatarConfig) -> Kernels:
    """Compiled kernels for an avatar.  Raises KernelError if they are not available."""
    problem = unsupported(config.radiance) if device.type == "cuda" else None
    if problem:
        raise KernelError(problem)
    kernels = Kernels(device, avatar_constants(config))
    with _compiling:
        kernels.prepare()
    return kernels


def _what(model: AvatarModel) -> str:
    if model.device.type == "cpu":
        return "processor"
    import torch

    return torch.cuda.get_device_name(model.device)

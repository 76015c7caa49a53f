"""Who computes the avatar: native kernels on a GPU or a CPU, or plain torch.  One switch, `choose_backend`."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

from insta_runtime.errors import UserError
from insta_runtime.field.tcnn import TcnnField
from insta_runtime.learn.trainer import Trainer
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
    from insta_runtime.render.model import AvatarModel

Kind = Literal["cuda", "host", "torch", "tcnn"]
_compiling = threading.Lock()  # who comes second finds in the cache what the first has compiled

NAMES = ("auto", *get_args(Kind))
AnyRenderer = Renderer | NativeRenderer
AnyTrainer = Trainer | NativeTrainer


@dataclass(frozen=True)
class Backend:
    """What was chosen and why; ``kernels`` are compiled for the model's field and device, None for torch."""

    kind: Kind
    kernels: Kernels | None
    reason: str


def choose_backend(name: str, model: AvatarModel) -> Backend:
    """The back end for ``model``.

    ``auto`` takes the native kernels of the model's device (``cuda`` or ``host``) and falls back to ``torch`` where
    they cannot be compiled or launched.  Any other name is an order: UserError if it cannot be had.
    """
    on_gpu = model.device.type == "cuda"
    native: Kind = "cuda" if on_gpu else "host"
    if name == "torch":
        return Backend("torch", None, "it was asked for")
    if isinstance(model.field, TcnnField):
        if name in ("cuda", "host"):
            raise UserError(f"an avatar that was learned with tiny-cuda-nn cannot go on with the {name} back end")
        return Backend("tcnn", None, "the avatar was learned with it")
    if name == "tcnn" and on_gpu:
        if model.learned:
            raise UserError("an avatar that was learned without tiny-cuda-nn cannot go on with it")
        use_tcnn(model)
        return Backend("tcnn", None, "it was asked for")
    if name not in NAMES:
        raise UserError(f"there is no back end {name!r}: choose one of {', '.join(NAMES)}")
    if name not in ("auto", native):
        advice = "--set run.device=cpu" if name == "host" else "--set run.device=cuda"
        raise UserError(f"the {name} back end does not compute on this device: try {advice}")
    try:
        kernels = _native(model.device, model.config)
    except KernelError as error:
        if name != "auto":
            raise UserError(f"the {name} back end cannot be used: {error}") from None
        return Backend("torch", None, f"no native kernels: {error}")
    return Backend(native, kernels, "it was asked for" if name == native else f"kernels for this {_what(model)}")


def warm_up(name: str, device: torch.device, config: AvatarConfig) -> None:
    """Compile ahead of need what `choose_backend` will ask for; what goes wrong, it will say."""
    if name in ("auto", "cuda", "host"):
        with suppress(KernelError):
            _native(device, config)


def make_renderer(
    model: AvatarModel, backend: Backend, *, urgent: bool = True, clock: Callable[[], float] = time.monotonic
) -> AnyRenderer:
    """What draws ``model``; it owns its own copy of the weights.

    ``urgent`` ones draw before others, where they can; ``clock`` tells the seconds by which snapshots fade in.
    """
    if backend.kernels is None:
        return Renderer(model, clock)
    return NativeRenderer(model, backend.kernels, urgent=urgent, clock=clock)


def make_trainer(model: AvatarModel, backend: Backend) -> AnyTrainer:
    """What learns ``model``."""
    return Trainer(model) if backend.kernels is None else NativeTrainer(model, backend.kernels)


def _native(device: torch.device, config: AvatarConfig) -> Kernels:
    """Kernels for an avatar, compiled.  KernelError if there can be none."""
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

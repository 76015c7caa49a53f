"""Who computes the avatar: native kernels on a GPU or a CPU, or plain torch.  One switch, `choose_backend`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

from insta_runtime.constants import avatar_constants
from insta_runtime.errors import UserError
from insta_runtime.field.packed import unsupported
from insta_runtime.field.tcnn import TcnnField
from insta_runtime.kernels import KernelError, Kernels
from insta_runtime.learn.native import NativeTrainer
from insta_runtime.learn.trainer import Trainer
from insta_runtime.render.native import NativeRenderer
from insta_runtime.render.renderer import Renderer

if TYPE_CHECKING:
    from insta_runtime.render.model import AvatarModel

Kind = Literal["cuda", "host", "torch", "tcnn"]
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
    if name == "tcnn" and on_gpu:
        _use_tcnn(model)
        return Backend("tcnn", None, "it was asked for")
    if name not in NAMES:
        raise UserError(f"there is no back end {name!r}: choose one of {', '.join(NAMES)}")
    if name not in ("auto", native):
        advice = "--set run.device=cpu" if name == "host" else "--set run.device=cuda"
        raise UserError(f"the {name} back end does not compute on this device: try {advice}")
    try:
        problem = unsupported(model.config.radiance) if on_gpu else None
        if problem:
            raise KernelError(problem)
        kernels = Kernels(model.device, avatar_constants(model.config.radiance))
        kernels.prepare()
    except KernelError as error:
        if name != "auto":
            raise UserError(f"the {name} back end cannot be used: {error}") from None
        return Backend("torch", None, f"no native kernels: {error}")
    return Backend(native, kernels, "it was asked for" if name == native else f"kernels for this {_what(model)}")


def make_renderer(model: AvatarModel, backend: Backend) -> AnyRenderer:
    """What draws ``model``; it owns its own copy of the weights."""
    return Renderer(model) if backend.kernels is None else NativeRenderer(model, backend.kernels)


def make_trainer(model: AvatarModel, backend: Backend) -> AnyTrainer:
    """What learns ``model``."""
    return Trainer(model) if backend.kernels is None else NativeTrainer(model, backend.kernels)


def _use_tcnn(model: AvatarModel) -> None:
    """Give an untrained ``model`` a field of tiny-cuda-nn; one that was loaded with such a field keeps it."""
    if not isinstance(model.field, TcnnField):
        model.field = TcnnField(model.config.radiance, model.config.learn.seed).to(model.device)  # type: ignore[assignment]


def _what(model: AvatarModel) -> str:
    if model.device.type == "cpu":
        return "processor"
    import torch

    return torch.cuda.get_device_name(model.device)

"""Local frame sinks of a call: preview window, recorder and virtual camera."""

from telepresence.outputs.preview import PreviewCommand as PreviewCommand
from telepresence.outputs.preview import PreviewWindow as PreviewWindow
from telepresence.outputs.recorder import Recorder as Recorder
from telepresence.outputs.virtual_camera import VirtualCamera as VirtualCamera

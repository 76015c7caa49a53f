"""Where else the pictures go: a window on this machine."""

from telepresence.outputs.preview import PreviewWindow as PreviewWindow
from telepresence.outputs.preview import Wish as Wish

"""A real-time telepresence daemon: tracks a face, learns its avatar while it talks, streams it."""

from insta_runtime import __version__ as __version__

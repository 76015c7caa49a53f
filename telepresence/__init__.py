"""A real-time telepresence daemon: tracks a face, learns its avatar while it talks, streams it."""

import os

# Before numpy is imported: for matrices as small as the head fit's, OpenBLAS's threads only wait for each other,
# and on a busy machine that takes six times the processor time.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

from insta_runtime import __version__ as __version__

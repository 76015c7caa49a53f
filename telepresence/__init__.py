"""A real-time telepresence daemon: tracks a face, learns its avatar while it talks, streams it."""

import os

# Before numpy is imported: for matrices as small as the head fit's, OpenBLAS's threads only wait for each other,
# and on a busy machine that takes six times the processor time.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

# Before torch is imported: OpenMP's threads that wait between loops must not take the processor from the other threads
# of the program; on a busy machine a step of learning takes up to ten times as long if they do.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

from insta_runtime import __version__ as __version__

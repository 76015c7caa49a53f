"""Real-time telepresence daemon: tracks a face, learns an avatar of it during the call, and streams the avatar."""

import os

# Set before numpy is imported: for matrices as small as those of the head fit, OpenBLAS's threads mostly wait for each
# other, which takes six times the processor time on a busy machine.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

# Set before torch is imported: OpenMP threads that wait between loops must not occupy the processor, or a training step
# takes up to ten times as long on a busy machine.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

from insta_runtime import __version__ as __version__

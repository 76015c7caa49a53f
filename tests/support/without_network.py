"""Commands that run in a network namespace of their own, which has no network card."""

from __future__ import annotations

import shutil
import subprocess

import pytest


def without_network() -> tuple[str, ...]:
    """Prefix of a command that takes the network from it.  Skips the test where that is not permitted."""
    for prefix in (("unshare", "--net"), ("unshare", "--net", "--map-root-user")):
        if shutil.which("unshare") and subprocess.run([*prefix, "true"], capture_output=True).returncode == 0:
            return prefix
    pytest.skip("needs unshare and permission to create a network namespace")

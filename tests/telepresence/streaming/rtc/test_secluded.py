"""A call works without internet, and the daemon contacts no other machine."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

OWN = {"127.0.0.1", "10.77.0.1"}
NETWORK = """
ip link set lo up && ip link add lan type veth peer name other && ip addr add 10.77.0.1/24 dev lan &&
ip link set lan up && ip link set other up && ip route add default via 10.77.0.2 && exec "$0" "$@"
"""
APART = ("unshare", "--net", "sh", "-c", NETWORK)


def test_a_call_without_internet_contacts_no_other_machine(root: Path) -> None:
    if shutil.which("chromium") is None or not shutil.which("unshare") or not shutil.which("ip"):
        pytest.skip("needs chromium, unshare and ip")
    if subprocess.run([*APART, "true"], capture_output=True).returncode != 0:
        pytest.skip("needs permission to create a network namespace")
    script = Path(__file__).with_name("secluded.py")
    done = subprocess.run(
        [*APART, sys.executable, str(script)],
        capture_output=True,
        text=True,
        timeout=600,
        env={**os.environ, "PYTHONPATH": str(root)},
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["hidden"], "the browser did not hide its addresses, so the case was not tested"
    assert found["psnr"] > 25.0
    assert set(found["spoken_to"]) <= OWN
    assert {name for name in found["looked_up"] if name not in OWN} == set()

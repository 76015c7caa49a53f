"""`telepresence doctor`: survives broken probes, and gives advice for every fault."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest

from telepresence.checkup import media, network
from telepresence.checkup.probe_runner import run_probes
from telepresence.cli import run_command
from tests.support.broken_probes import crashing, hanging, leaving, raising, whole


def test_a_broken_probe_is_a_finding_and_the_rest_is_checked() -> None:
    found = list(run_probes([whole, raising, crashing, leaving, whole, crashing]))
    results = [(finding.topic, finding.ok) for finding in found]
    assert results == [
        ("whole", True),
        ("half", True),
        ("raising", None),
        ("crashing", None),
        ("leaving", None),
        ("whole", True),
        ("crashing", None),
    ]
    assert found[2].found == "could not be checked: RuntimeError: the driver says no"
    assert "exit status -11" in found[3].found
    assert "exit status 7" in found[4].found


def test_a_hanging_probe_is_given_up() -> None:
    (finding,) = run_probes([hanging], patience_s=2.0)
    assert finding.found == "could not be checked: no answer within 2 s"


def test_only_json_is_printed_on_request(capfd: pytest.CaptureFixture[str]) -> None:
    assert run_command(["doctor", "--json", "-"]) == 0
    findings = {finding["topic"]: finding for finding in json.loads(capfd.readouterr().out)["findings"]}
    for topic in ("H.264", "VP8", "Opus", "decoders", "WebRTC", "preview"):
        assert findings[topic]["ok"] is True, findings[topic]
    for topic in ("NVENC", "GPU", "camera", "virtual camera", "browser tracking", "port: page", "port: livelink"):
        assert findings[topic]["found"], topic
    assert not [finding for finding in findings.values() if finding["ok"] is False and not finding["advice"]]
    assert not [finding for finding in findings.values() if "could not be checked" in finding["found"]]


def test_a_port_that_is_taken_is_named() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        try:
            other.bind(("127.0.0.1", 11573))
        except OSError:
            pytest.skip("the port is in use")
        taken = {finding.topic: finding for finding in network.ports()}["port: openseeface"]
    assert (taken.found, taken.ok) == ("UDP 11573 is taken", None)
    assert "--driver openseeface=N" in taken.advice


@pytest.mark.skipif("sys.platform != 'linux'")
def test_every_state_of_the_virtual_camera(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module, devices = tmp_path / "v4l2loopback", tmp_path / "video4linux"
    monkeypatch.setattr(media, "LOOPBACK", module)
    monkeypatch.setattr(media, "DEVICES", devices)
    package = [True]
    monkeypatch.setattr(media, "find_spec", lambda _: object() if package[0] else None)

    def probe() -> tuple[str, bool | None, str]:
        (finding,) = media.virtual_camera()
        return finding.found, finding.ok, finding.advice

    found, ok, advice = probe()
    assert (found, ok) == ("no kernel module v4l2loopback", None)
    assert "modprobe v4l2loopback exclusive_caps=1" in advice
    (module / "parameters").mkdir(parents=True)
    (module / "parameters" / "exclusive_caps").write_text("N,N\n")
    assert probe()[0] == "v4l2loopback without a device"
    (devices / "video3" / "device").mkdir(parents=True)  # a physical camera
    assert probe()[0] == "v4l2loopback without a device"
    (devices / "video2").mkdir()
    monkeypatch.setattr("os.access", lambda *_: False)
    assert probe()[2] == "usermod -aG video USER"
    monkeypatch.setattr("os.access", lambda *_: True)
    found, ok, advice = probe()
    assert (found, ok) == ("/dev/video2", None)
    assert "exclusive_caps=1" in advice
    (module / "parameters" / "exclusive_caps").write_text("Y,N\n")
    assert probe() == ("/dev/video2", True, "")
    package[0] = False
    assert probe() == ("/dev/video2", None, "pip install pyvirtualcam")

"""A phone drives the face of a call, and another program receives the states of the call's tracker."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import zmq

from telepresence.call.call_options import CallOptions
from telepresence.call.daemon import Daemon
from telepresence.config import load_config
from telepresence.drivers import parameter_message
from tests.support import face_packets as packets
from tests.support.small_call import IN_PROCESS_CALL, PATIENCE_S, wait_for_status


def test_a_phone_drives_the_face_while_it_sends_and_tracked_states_are_published(tmp_path: Path) -> None:
    settings = (*IN_PROCESS_CALL, "drivers.livelink=0", "drivers.publish=tcp://127.0.0.1:*")
    daemon = Daemon(load_config("cpu", settings, "cpu"), CallOptions("synthetic", tmp_path / "avatar"))
    try:
        daemon.start()
        status = wait_for_status(daemon, lambda status: status["driver"] == "tracker" and status["tracked_fps"] > 0)
        listener: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.SUB)
        listener.setsockopt(zmq.SUBSCRIBE, b"")
        listener.connect(status["drivers"]["publisher"]["address"])
        assert listener.poll(PATIENCE_S * 1000)
        heard = parameter_message.decode(listener.recv())
        listener.close(linger=0)
        assert heard.head == status["head"]["sha256"]
        assert heard.expression
        assert heard.person is not None

        host, _, port = status["drivers"]["livelink"]["address"].removeprefix("udp://").partition(":")
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as phone:
            frame = 0

            def speak(status: dict[str, Any]) -> bool:
                nonlocal frame
                frame += 1
                phone.sendto(packets.livelink({"JawOpen": 0.4}, frame=frame), (host, int(port)))
                return bool(status["driver"] == "livelink")

            status = wait_for_status(daemon, speak)
            phone.sendto(b"nonsense", (host, int(port)))
        status = wait_for_status(daemon, lambda status: bool(status["errors"]))
        assert status["errors"][0].startswith("livelink: malformed packet")
        assert status["drivers"]["livelink"]["counts"]["accepted"] > 0
        wait_for_status(daemon, lambda status: status["driver"] == "tracker")
    finally:
        daemon.stop()
        daemon.stop()

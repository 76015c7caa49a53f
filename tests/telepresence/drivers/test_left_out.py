"""Invalid parts of packets are left out alone, and counted; senders whose clocks fall back still move the face."""

from __future__ import annotations

import math
import socket
import struct
import time
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import numpy as np
import pytest
import zmq

from insta_runtime.head import HeadModel, load_head
from telepresence.drivers.openseeface import FEATURES, RECORD
from telepresence.drivers.udp_bridge import UdpBridge
from telepresence.drivers.zeromq import ZeroMqDriver
from tests.support import face_packets as packets
from tests.support.face_packets import bundle, osc

AHEAD = np.diag([1.0, -1.0, -1.0])
STILL = (0.0, 0.0, 0.0, 1.0)
BONE = "/VMC/Ext/Bone/Pos"
BLEND = "/VMC/Ext/Blend/Val"
FRAME = [
    osc("/VMC/Ext/OK", 1),
    osc("/VMC/Ext/T", 1.0),
    osc(BONE, "Head", 0.0, 0.0, 0.0, *STILL),
    osc(BLEND, "jawOpen", 0.5),
    osc("/VMC/Ext/Blend/Apply"),
]


@pytest.fixture(scope="module")
def head() -> HeadModel:
    return load_head()


@pytest.fixture
def send(head: HeadModel) -> Iterator[Callable[..., UdpBridge]]:
    """``send(name, *packets)``: the bridge ``name`` after it has received ``packets`` through a socket."""
    opened: list[UdpBridge] = []

    def run(name: str, *received: bytes) -> UdpBridge:
        bridge = UdpBridge(name, "127.0.0.1:0", head, on_refused=lambda _text: None)
        bridge.start()
        opened.append(bridge)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sending:
            for index, packet in enumerate(received, start=1):
                sending.sendto(packet, ("127.0.0.1", bridge.port))
                wait(lambda index=index: bridge.counts.total() - bridge.counts["left_out"] >= index)  # type: ignore[misc]
        return bridge

    yield run
    for bridge in opened:
        bridge.stop()


def wait(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def unit(driver: Any, head: HeadModel, name: str) -> float:
    newest = driver.newest()
    assert newest is not None
    return float(newest.state.expression[head.expression_names.index(name)])


@pytest.mark.parametrize(
    ("extra", "left_out"),
    [
        (osc(BONE, "LeftIndexProximal", *[math.nan] * 7), 0),  # a finger moves no face
        (osc(BONE, "RightHand", 0.0, 0.0), 0),
        (osc(BONE, "Head", math.nan, math.inf, 1e30, *STILL), 0),  # positions are not used
        (osc(BLEND, "TailWag", math.nan), 0),
        (osc("/VMC/Ext/Root/Pos", "root", *[math.nan] * 7), 0),
        (osc("/VMC/Ext/Hmd/Pos", 1, 2, 3), 0),
        (osc("/x", "text").replace(b",s", b",q"), 0),
        (b"no address\0\0", 0),
        (b"", 0),
        (bundle(), 0),
        (bundle(bundle(bundle(bundle(bundle(osc("/x")))))), 0),
        (bundle(*[osc("/x", 1.0)] * 1100), 0),
        (osc("/VMC/Ext/T", 1.8e9), 0),  # Unix time
        (osc("/VMC/Ext/T", 1.8e12), 0),
        (osc(BONE, "Head", 0.0, 0.0, 0.0, math.nan, 0.0, 0.0, 1.0), 1),
        (osc(BONE, "Neck", 0.0, 0.0, 0.0, *[0.0] * 4), 1),
        (osc(BONE, "LeftEye", 0.0, 0.0, 0.0, 0.0), 1),
        (osc(BLEND, "mouthSmileLeft", math.nan), 1),
        (osc(BLEND, "mouthSmileLeft", 1e30), 1),
        (osc(BLEND, "mouthSmileLeft", "much"), 1),
        (osc(BLEND, "mouthSmileLeft"), 1),
        (osc(BLEND, "jawOpen", math.inf), 1),
        (osc(BLEND, 7, 0.5), 1),
        (osc("/VMC/Ext/T", math.nan), 1),
        (osc("/VMC/Ext/OK", 0.5), 1),
        (osc(BLEND, "mouthSmileLeft", 1.0)[:-4], 1),
    ],
)
def test_a_vmc_frame_with_one_bad_item_moves_the_face(
    send: Callable[..., UdpBridge], head: HeadModel, extra: bytes, left_out: int
) -> None:
    frame = [*FRAME[:4], extra, FRAME[4]] if BLEND.encode() in extra else [extra, *FRAME]
    bridge = send("vmc", bundle(*frame))
    assert bridge.counts["accepted"] == 1
    assert bridge.counts["malformed"] == 0
    assert bridge.counts["left_out"] == left_out
    assert unit(bridge, head, "jawOpen") == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("end", "left_out"), [(b"\r\n", 0), (bytes(4), 0), (bytes(8), 0), (b"\0\0\0\x40/x", 1), (b"\xff" * 4, 1)]
)
def test_a_vmc_frame_with_bytes_after_it_moves_the_face(
    send: Callable[..., UdpBridge], head: HeadModel, end: bytes, left_out: int
) -> None:
    bridge = send("vmc", bundle(*FRAME) + end)
    assert bridge.counts["accepted"] == 1
    assert bridge.counts["left_out"] == left_out
    assert unit(bridge, head, "jawOpen") == pytest.approx(0.5)


def test_a_bad_weight_or_bone_keeps_its_last_value(send: Callable[..., UdpBridge], head: HeadModel) -> None:
    turned = (0.0, math.sin(0.1), 0.0, math.cos(0.1))
    bridge = send(
        "vmc",
        packets.vmc({"jawOpen": 0.5, "mouthSmileLeft": 0.25}, {"Head": turned}, time=1.0),
        packets.vmc({"jawOpen": math.nan, "mouthSmileLeft": 0.75}, {"Head": [math.nan] * 4}, time=2.0),
    )
    newest = bridge.newest()
    assert newest is not None
    assert bridge.counts == {"accepted": 2, "left_out": 2}
    assert unit(bridge, head, "jawOpen") == pytest.approx(0.5)
    assert unit(bridge, head, "mouthSmileLeft") == pytest.approx(0.75)
    expected = send("vmc", packets.vmc({}, {"Head": turned})).newest()
    assert expected is not None
    np.testing.assert_allclose(newest.state.rotation, expected.state.rotation)


@pytest.mark.parametrize(
    ("bad", "left_out"),
    [
        ({"MouthSmileLeft": math.nan}, 1),
        ({"MouthSmileLeft": math.inf, "TongueOut": 1e30}, 2),
        ({"HeadYaw": math.nan, "HeadPitch": math.nan}, 1),
        ({"LeftEyeYaw": math.nan, "RightEyeRoll": math.inf}, 0),  # not used
    ],
)
def test_a_live_link_packet_with_bad_values_moves_the_rest(
    send: Callable[..., UdpBridge], head: HeadModel, bad: dict[str, float], left_out: int
) -> None:
    first = packets.livelink({"JawOpen": 0.2, "MouthSmileLeft": 0.3, "HeadYaw": 0.2}, frame=1)
    second = packets.livelink({"JawOpen": 0.5, "MouthSmileLeft": 0.3, "HeadYaw": 0.2} | bad, frame=2)
    bridge = send("livelink", first, second)
    assert bridge.counts["accepted"] == 2
    assert bridge.counts["left_out"] == left_out
    assert unit(bridge, head, "jawOpen") == pytest.approx(0.5)
    assert unit(bridge, head, "mouthSmileLeft") == pytest.approx(0.3)
    newest, alone = bridge.newest(), send("livelink", first).newest()
    assert newest is not None
    assert alone is not None
    np.testing.assert_allclose(newest.state.rotation, alone.state.rotation)


NAN = struct.pack("<f", math.nan)
FEATURE_BYTES = RECORD - 4 * len(FEATURES)


@pytest.mark.parametrize(
    ("offset", "left_out"),
    [
        (12, 0),  # width of the image
        (49, 0),  # Euler angles
        (73, 0),  # confidence of a landmark
        (345, 0),  # landmark in the image
        (889, 0),  # landmark of the jaw
        (FEATURE_BYTES + 4 * FEATURES.index("mouth_corner_inout_l"), 0),
        (FEATURE_BYTES + 4 * FEATURES.index("mouth_wide"), 1),
        (20, 1),  # openness of the right eye
        (29, 1),  # error of the fit
        (33, 1),  # quaternion
        (65, 1),  # position
        (889 + 12 * 67, 1),  # pupil
    ],
)
def test_an_openseeface_packet_with_a_bad_number_moves_the_rest(
    send: Callable[..., UdpBridge], head: HeadModel, offset: int, left_out: int
) -> None:
    good = packets.openseeface(AHEAD, features={"mouth_open": 0.5})
    bridge = send("openseeface", packets.openseeface(AHEAD), good[:offset] + NAN + good[offset + 4 :])
    assert bridge.counts["accepted"] == 2
    assert bridge.counts["left_out"] == left_out
    assert unit(bridge, head, "jawOpen") == pytest.approx(0.5)
    newest, alone = bridge.newest(), send("openseeface", good).newest()
    assert newest is not None
    assert alone is not None
    for name, array in newest.state.arrays().items():
        np.testing.assert_allclose(array, alone.state.arrays()[name], atol=1e-6, err_msg=name)


STAMPED: dict[str, Callable[[float, float], bytes]] = {
    "livelink": lambda at, jaw: packets.livelink({"JawOpen": jaw}, frame=round(60 * at)),
    "vmc": lambda at, jaw: packets.vmc({"jawOpen": jaw}, time=at),
    "openseeface": lambda at, jaw: packets.openseeface(AHEAD, at=at, features={"mouth_open": jaw}),
}


@pytest.mark.parametrize("name", STAMPED)
@pytest.mark.parametrize("step", [0.1, 2.0, 4.5, 1000.0])
def test_a_bridge_takes_a_sender_whose_clock_falls_back(
    send: Callable[..., UdpBridge], head: HeadModel, name: str, step: float
) -> None:
    stamp = STAMPED[name]
    before, after = [2000 + index / 30 for index in range(10)], [2000.3 - step + index / 30 for index in range(10)]
    bridge = send(name, *(stamp(at, 0.2) for at in before), *(stamp(at, 0.6) for at in after))
    assert bridge.counts["late"] <= 3
    assert bridge.counts["accepted"] >= 17
    assert unit(bridge, head, "jawOpen") == pytest.approx(0.6)


@pytest.mark.parametrize("name", STAMPED)
def test_a_bridge_takes_constant_time_stamps_and_drops_overtaken_packets(
    send: Callable[..., UdpBridge], head: HeadModel, name: str
) -> None:
    stamp = STAMPED[name]
    assert send(name, *(stamp(50.0, 0.1 * index) for index in range(8))).counts == {"accepted": 8}
    bridge = send(name, stamp(51.0, 0.1), stamp(53.0, 0.3), stamp(52.0, 0.2), stamp(54.0, 0.4))
    assert bridge.counts == {"accepted": 3, "late": 1}
    # After a step back to a constant time stamp.
    bridge = send(name, stamp(52.0, 0.1), *(stamp(50.0, 0.7) for _ in range(8)))
    assert bridge.counts == {"accepted": 6, "late": 3}
    assert unit(bridge, head, "jawOpen") == pytest.approx(0.7)


HEAD = "ab" * 32
GOOD = {"v": 2, "seq": 0, "t_capture_ns": 1, "head": HEAD, "basis": "arkit52"}


@pytest.fixture
def driven() -> Iterator[tuple[ZeroMqDriver, Callable[..., None]]]:
    """A ZeroMQ receiver, and a function that sends it a message and waits for its result."""
    driver = ZeroMqDriver(
        "tcp://127.0.0.1:*", basis="arkit52", head_sha256=HEAD, expressions=52, on_refused=lambda _text: None
    )
    driver.start()
    sending = zmq.Context.instance().socket(zmq.PUSH)
    sending.setsockopt(zmq.LINGER, 0)
    sending.connect(driver.address)

    def send(**fields: Any) -> None:
        results = driver.counts.total() - driver.counts["left_out"]
        sending.send(msgspec.msgpack.encode(GOOD | fields))
        wait(lambda: driver.counts.total() - driver.counts["left_out"] > results)

    yield driver, send
    sending.close()
    driver.stop()


@pytest.mark.parametrize(
    "bad",
    [
        {"jaw_pose": [math.nan, 0.0, 0.0]},
        {"eye_pose": [[0.0, math.inf, 0.0], [0.0, 0.0, 0.0]]},
        {"rotation": [100.0, 0.0, 0.0]},
        {"translation": [0.0, 0.0, -1.0]},
        {"expression": [0.0] * 51},
        {"expression": [math.nan, *[0.0] * 51], "neck_pose": [1e300, 0.0, 0.0]},
    ],
)
def test_a_field_of_a_parameter_message_is_left_out_alone(
    driven: tuple[ZeroMqDriver, Callable[..., None]], bad: dict[str, Any]
) -> None:
    driver, send = driven
    send(eyelids=[0.1, 0.1], expression=[0.5] * 52)
    send(seq=1, t_capture_ns=2, eyelids=[0.7, 0.7], **bad)
    assert driver.counts == {"accepted": 2, "left_out": len(bad)}
    newest = driver.newest()
    assert newest is not None
    np.testing.assert_allclose(newest.state.eyelids, 0.7)
    np.testing.assert_allclose(newest.state.expression, 0.5)
    assert newest.state.translation[2] > 0


def test_zeromq_takes_constant_capture_times_and_a_clock_that_falls_back(
    driven: tuple[ZeroMqDriver, Callable[..., None]], monkeypatch: pytest.MonkeyPatch
) -> None:
    driver, send = driven
    second, now = 10**9, 10**15
    monkeypatch.setattr("telepresence.drivers.zeromq.now_ns", lambda: now)
    for seq in range(40):
        send(seq=seq, t_capture_ns=500 * second, eyelids=[0.1, 0.1])
        now += second // 10
    assert driver.counts["accepted"] >= 39 - 6
    newest = driver.newest()
    assert newest is not None
    assert newest.seq == 39
    for index in range(20):
        send(seq=40 + index, t_capture_ns=498 * second + index * second // 10, eyelids=[0.9, 0.9])
        now += second // 10
    newest = driver.newest()
    assert newest is not None
    assert newest.seq == 59
    assert driver.counts["late"] == 0

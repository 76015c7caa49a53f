"""Tools that measure a call: numbers in frames, test videos, the relay of a bad network, and statistics."""

from __future__ import annotations

import base64
import io
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

import av
import numpy as np
import psutil
import pytest
from call_figures import barcode, camera_video
from call_figures.background_load import BackgroundLoad, cpu_s, process_tree
from call_figures.browser import WATCH
from call_figures.delay import encoder_to_screen_ms, first_painted, round_trips_ms, video_behind_audio_ms
from call_figures.frame_stamping import REMEMBERED, FrameStamper
from call_figures.goals import Goal, percentile, spread
from call_figures.table import BEGIN, END, conditions, table, write_between
from call_figures.udp_relay import LinkQuality, UdpRelay
from PIL import Image

from telepresence.runtime.frames import CameraFrame, OutputFrame

if TYPE_CHECKING:
    from playwright.sync_api import Browser

STRIPS = {"SENT_TIME": barcode.SENT_TIME, "SOURCE_FRAME": barcode.SOURCE_FRAME, "CAMERA_FRAME": barcode.CAMERA_FRAME}


def noise(height: int, width: int) -> np.ndarray:
    """A frame of noise, which is hard to encode."""
    return np.random.default_rng(1).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("strip", STRIPS.values(), ids=STRIPS)
@pytest.mark.parametrize("number", [0, 1, 0x5A5A5A, barcode.MODULUS - 1])
def test_a_number_is_read_as_it_was_written(strip: barcode.Strip, number: int) -> None:
    picture = noise(480, 640)
    assert barcode.read(picture, strip) is None
    barcode.write(picture, strip, number + barcode.MODULUS)
    assert barcode.read(picture, strip) == number
    half = np.asarray(Image.fromarray(picture).resize((320, 240), Image.Resampling.BILINEAR))
    assert barcode.read(half, strip) == number
    rows, columns = strip.edges(480, 640)
    picture[rows[0] : rows[1], columns[0] : columns[1]] ^= 255
    assert barcode.read(picture, strip) is None, "one wrong square is noticed"


def test_a_number_survives_a_starved_encoder() -> None:
    encoder = av.CodecContext.create("libx264", "w")
    encoder.width = encoder.height = 512
    encoder.pix_fmt, encoder.framerate, encoder.time_base = "yuv420p", Fraction(30), Fraction(1, 30)
    encoder.options = {"preset": "superfast", "tune": "zerolatency", "qp": "45"}
    decoder = av.CodecContext.create("h264", "r")
    found = []
    for number in range(5):
        picture = noise(512, 512)
        barcode.write(picture, barcode.SENT_TIME, 111_111 * number)
        barcode.write(picture, barcode.SOURCE_FRAME, number)
        for packet in encoder.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")):
            for frame in decoder.decode(packet):
                seen = frame.to_ndarray(format="rgb24")
                found.append((barcode.read(seen, barcode.SENT_TIME), barcode.read(seen, barcode.SOURCE_FRAME)))
    assert found
    assert found == [(111_111 * number, number) for number in range(len(found))]


READ = """async ([data, strip]) => {
    const video = new Image();
    video.src = `data:image/png;base64,${data}`;
    await video.decode();
    Object.defineProperties(video, {videoWidth: {value: video.width}, videoHeight: {value: video.height}});
    return callFigures.read(video, strip);
}"""


def test_a_browser_reads_the_same(chromium: Browser) -> None:
    page = chromium.new_page()
    page.add_init_script(path=WATCH)
    page.goto("data:text/html,<p>nothing")
    for size in ((512, 512), (256, 256), (480, 640)):
        for name, strip in STRIPS.items():
            for number in (None, 7_654_321):
                picture = np.full((*size, 3), 128, np.uint8)
                if number is not None:
                    barcode.write(picture, strip, number)
                data = io.BytesIO()
                Image.fromarray(picture).save(data, "PNG")
                found = page.evaluate(READ, [base64.b64encode(data.getvalue()).decode(), name])
                assert found == (-1 if number is None else number)


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    """A video of one second: a ramp of colours that moves."""
    path = tmp_path / "clip.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=30)
        stream.width, stream.height, stream.pix_fmt = 320, 240, "yuv420p"
        ramp = np.linspace(0, 255, 320, dtype=np.uint8)[None, :, None]
        for index in range(30):
            picture = np.broadcast_to(np.roll(ramp, 5 * index, axis=1), (240, 320, 3))
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")))
        container.mux(stream.encode(None))
    return path


def test_a_video_is_numbered_and_beeps_begin_with_their_frames(clip: Path, tmp_path: Path) -> None:
    camera_video.write_video_with_beeps(clip, tmp_path / "video.mp4", 5.0)
    with av.open(str(tmp_path / "video.mp4")) as container:
        pictures = [
            (f.time, barcode.read(f.to_ndarray(format="rgb24"), barcode.CAMERA_FRAME))
            for f in container.decode(video=0)
        ]
    assert [number for _, number in pictures] == list(range(150))
    assert [time for time, _ in pictures] == pytest.approx([n / 30 for n in range(150)], abs=0.001)
    levels: dict[float, np.ndarray] = {}
    with av.open(str(tmp_path / "video.mp4")) as container:
        for frame in container.decode(audio=0):
            assert frame.time is not None
            levels[frame.time] = frame.to_ndarray()[0]
    level = np.concatenate([np.abs(block) for block in levels.values()])
    when = np.concatenate([at + np.arange(len(block)) / camera_video.AUDIO_HZ for at, block in levels.items()])
    loud = when[level > 0.25]
    begins = loud[np.diff(loud, prepend=-1.0) > 0.5]
    assert begins == pytest.approx([0.0, 2.0, 4.0], abs=0.003)


def test_a_camera_video_is_numbered(clip: Path, tmp_path: Path) -> None:
    camera_video.write_camera_video(clip, tmp_path / "video.mjpeg", 1.0)
    with av.open(str(tmp_path / "video.mjpeg"), format="mjpeg") as container:
        pictures = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert {picture.shape for picture in pictures} == {(480, 640, 3)}
    assert [barcode.read(picture, barcode.CAMERA_FRAME) for picture in pictures] == list(range(30))


def test_lateness_counts_every_new_picture_once_and_survives_the_end_of_the_numbers() -> None:
    wall = 1e12  # ms
    stamps = [int(10 * (wall + at)) % barcode.MODULUS for at in (0.0, 33.0)]
    seen = [(wall + 40.0, 1, stamps[0]), (wall + 70.0, 2, stamps[0]), (wall + 80.0, 3, -1), (wall + 95.5, 4, stamps[1])]
    assert encoder_to_screen_ms(seen) == pytest.approx([40.0, 62.5], abs=0.11)
    late = barcode.MODULUS * 1e6 / 10.0  # ms, at which the number begins anew
    assert encoder_to_screen_ms([(late + 15.0, 1, barcode.MODULUS - 50)]) == pytest.approx([20.0], abs=0.11)


def test_a_round_trip_is_to_the_newest_picture_of_that_number() -> None:
    own = [(1000.0 + 33.0 * n, n, n % 600) for n in range(700)]
    seen = [(wall + 90.0, n, 0, number) for wall, n, number in own[10:650:3]]
    assert round_trips_ms(own, seen) == pytest.approx([90.0] * len(seen))
    assert first_painted(own, 2)[-1] == (own[-1][0], 699), "numbers go on after the video's end"


@pytest.mark.parametrize("behind", [-40.0, 0.0, 120.0])
@pytest.mark.parametrize("every", [1, 3])
def test_offsets_of_sound_do_not_depend_on_the_rate_of_pictures(behind: float, every: int) -> None:
    seen = [(5000.0 + behind + 1000.0 * n / 30, n, 0, n % 600) for n in range(30, 1000, every)]
    heard = [5000.0 + 1000.0 * n / 30 for n in range(120, 960, camera_video.BEEP_EVERY)]
    found = video_behind_audio_ms(seen, heard)
    assert len(found) == len(heard)
    assert found == pytest.approx([behind] * len(found), abs=0.01)


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Sockets of a browser and of a daemon."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as a, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as b:
        for end in (a, b):
            end.bind(("127.0.0.1", 0))
            end.settimeout(60.0)
        yield a, b


def described(port: int, host: str = "127.0.0.1") -> str:
    lines = ["v=0", "m=video 9 UDP/TLS/RTP/SAVPF 96", "c=IN IP4 0.0.0.0", "a=mid:0"]
    lines += [
        f"a=candidate:1 1 udp 2113937151 {host} {port} typ host generation 0",
        "a=candidate:2 1 udp 1 10.0.0.1 9 typ host",
    ]
    return "\r\n".join([*lines, "a=end-of-candidates", ""])


def through(relay: UdpRelay, ends: tuple[socket.socket, socket.socket]) -> tuple[int, int]:
    """Exchange offer and answer through the relay; the ports that browser and daemon send to."""
    offer = relay.rewrite_offer(described(ends[0].getsockname()[1], "hidden.local"))
    answer = relay.rewrite_answer(described(ends[1].getsockname()[1]))
    ports = []
    for text in (answer, offer):
        candidates = [line for line in text.split("\r\n") if line.startswith("a=candidate")]
        assert len(candidates) == 1
        assert text.replace(candidates[0] + "\r\n", "").startswith("v=0\r\nm=video")
        assert candidates[0].split()[4] == "127.0.0.1"
        ports.append(int(candidates[0].split()[5]))
    return ports[0], ports[1]


def test_a_relay_passes_packets_both_ways_and_none_from_a_third_program(
    ends: tuple[socket.socket, socket.socket],
) -> None:
    browser, daemon = ends
    relay = UdpRelay(LinkQuality(delay_s=0.0))
    try:
        to_daemon, to_browser = through(relay, ends)
        browser.sendto(b"question", ("127.0.0.1", to_daemon))
        assert daemon.recvfrom(100) == (b"question", ("127.0.0.1", to_browser))
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
            stranger.sendto(b"from a third program", ("127.0.0.1", to_browser))
        daemon.sendto(b"answer", ("127.0.0.1", to_browser))
        assert browser.recvfrom(100) == (b"answer", ("127.0.0.1", to_daemon))
    finally:
        relay.close()


def test_a_relay_limits_the_rate_drops_what_does_not_fit_its_queue_and_loses_at_random(
    ends: tuple[socket.socket, socket.socket],
) -> None:
    browser, daemon = ends
    now = 0.0
    link = LinkQuality(delay_s=0.0, rate=102.4e3, queue_s=0.1)  # of these packets one every 10 ms; the queue holds ten
    relay = UdpRelay(link, clock=lambda: now)
    try:
        _, to_browser = through(relay, ends)
        send(daemon, to_browser, relay, [number.to_bytes(2, "big") + bytes(98) for number in range(300)])
        assert relay.passed in (10, 11)
        now = 0.055
        assert [browser.recv(2000)[1] for _ in range(5)] == [0, 1, 2, 3, 4]
        browser.settimeout(0.2)
        with pytest.raises(TimeoutError):
            browser.recv(2000)  # no faster than the link
        browser.settimeout(60.0)
        now = 1.0
        assert [browser.recv(2000)[1] for _ in range(5, relay.passed)] == list(range(5, relay.passed))
        passed = relay.passed
        relay.link = LinkQuality(loss=0.5, delay_s=0.0)
        send(daemon, to_browser, relay, [b"x"] * 200)
        assert 60 < relay.passed - passed < 140
    finally:
        relay.close()


def send(daemon: socket.socket, port: int, relay: UdpRelay, packets: list[bytes]) -> None:
    """Send all, and wait until each has passed or is lost."""
    for packet in packets:
        before = relay.passed + relay.dropped
        daemon.sendto(packet, ("127.0.0.1", port))
        while relay.passed + relay.dropped == before:
            time.sleep(0.0001)


def test_a_text_without_candidates_is_refused() -> None:
    relay = UdpRelay(LinkQuality())
    try:
        with pytest.raises(RuntimeError, match="no address"):
            relay.rewrite_offer("v=0\r\nm=video 9 RTP 96\r\n")
    finally:
        relay.close()


def test_goals_say_what_is_met() -> None:
    assert Goal("a", 30.0, 29.0, 30.0, least=True).met == "aim"
    assert Goal("a", 29.5, 29.0, 30.0, least=True).met == "must"
    assert str(Goal("late", 81.0, 80.0, 45.0, " ms")) == "late 81 ms (MISSED: at most 80)"
    assert Goal("late", None, 80.0, 45.0).met == "none"
    assert percentile([], 50.0) is None
    assert spread([4.0, 1.0, 3.0, 2.0]) == {"p50": 2.5, "p95": 3.9, "max": 4.0, "count": 4}


def test_processor_time_of_other_programs_is_separated_from_our_own() -> None:
    # A tenth more than is waited for: the system rounds user and system time down, each to a hundredth of a second.
    burn = "import time\nend = time.process_time() + 0.5\nwhile time.process_time() < end: pass"
    quiet = BackgroundLoad()
    before = quiet.own_s()
    child = subprocess.Popen([sys.executable, "-c", f"{burn}\ninput()"], stdin=subprocess.PIPE)
    while cpu_s(psutil.Process(child.pid)) < 0.4:
        assert child.poll() is None
        time.sleep(0.02)
    assert child.pid in [process.pid for process in process_tree(os.getpid())]
    quiet.others()
    child.communicate(b"\n")
    quiet.others()
    assert quiet.own_s() - before > 0.39, "a child that has ended still counts as our own"


def test_output_frames_carry_their_time_and_the_number_of_the_camera_frame(tmp_path: Path) -> None:
    with (tmp_path / "journal").open("w") as lines:
        stamper = FrameStamper(lines)
        assert stamper.on_camera_frame(None) is None
        for number in range(REMEMBERED + 1):
            picture = np.zeros((480, 640, 3), np.uint8)
            barcode.write(picture, barcode.CAMERA_FRAME, number)
            stamper.on_camera_frame(CameraFrame(number, 1000 + number, picture))
        untouched = np.zeros((512, 512, 3), np.uint8)
        before = time.time_ns() // 100_000
        shown = [stamper.stamped(OutputFrame(0, 1000 + number, untouched)) for number in (REMEMBERED, 0)]
        after = time.time_ns() // 100_000
    assert not untouched.any(), "the daemon's own frame is not changed"
    assert [barcode.read(frame.rgb, barcode.SOURCE_FRAME) for frame in shown] == [REMEMBERED, None], (
        "the oldest is forgotten"
    )
    for frame in shown:
        stamp = barcode.read(frame.rgb, barcode.SENT_TIME)
        assert stamp is not None
        assert (stamp - before) % barcode.MODULUS <= after - before
    journal = [json.loads(line) for line in (tmp_path / "journal").read_text().splitlines()]
    assert [line["captured_ns"] for line in journal if "captured_ns" in line] == [1000 + REMEMBERED, 1000]
    assert str(threading.main_thread().native_id) in next(line["threads"] for line in journal if "threads" in line)


def test_figures_stand_as_a_table_in_a_document(tmp_path: Path) -> None:
    goals = [Goal("p50", 42.0, 50.0, 30.0, " ms").figures(), Goal("rate", None, 29.0, 30.0, least=True).figures()]
    machine = {"processor": "a processor", "cores": 2}
    entry = {"commit": "abc", "machine": machine, "learning": False, "others_cores": 0.05, "goals": goals}
    results = {"demo": {"commit": "old"}, "call-latency": entry}
    document = tmp_path / "media.md"
    document.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    write_between(document, table(results) + conditions(results))
    text = document.read_text()
    assert "| latency | frozen | p50 | ≤ 50 ms | ≤ 30 ms | 42 ms (short of the aim) |" in text
    assert "| latency | frozen | rate | ≥ 29 | ≥ 30 | none **(missed)** |" in text
    assert "abc; a processor, 2 cores; other programs kept at most 0.05 cores busy" in text
    assert "old" not in text
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert conditions({}) == "Nothing was measured yet.\n"
    (tmp_path / "other.md").write_text("nothing")
    with pytest.raises(SystemExit, match="lacks"):
        write_between(tmp_path / "other.md", "new")

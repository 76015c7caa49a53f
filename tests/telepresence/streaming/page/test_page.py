"""The web page and its video in a real browser."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from telepresence.streaming import DaemonInterface, MediaServer, StreamSettings
from telepresence.streaming.video.audience import Audience, ViewerStream

if TYPE_CHECKING:
    from playwright.sync_api import Browser

FILM_FLAGS = ("--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream")

UNNAMED = """() => [...document.querySelectorAll('button, input, select, video')]
    .filter(e => !e.ariaLabel && !e.innerText?.trim() && !e.textContent.trim() && !e.labels?.length).map(e => e.id)"""

VP8_VIEWER = """async () => {
    const pc = new RTCPeerConnection({iceServers: []});
    const video = Object.assign(document.createElement('video'), {muted: true, autoplay: true, id: 'vp8'});
    document.body.append(video);
    const transceiver = pc.addTransceiver('video', {direction: 'recvonly'});
    const codecs = RTCRtpReceiver.getCapabilities('video').codecs;
    transceiver.setCodecPreferences(codecs.filter(c => /VP8|rtx/.test(c.mimeType)));
    pc.ontrack = e => video.srcObject = new MediaStream([e.track]);
    await pc.setLocalDescription();
    while (pc.iceGatheringState !== 'complete') await new Promise(r => setTimeout(r, 20));
    const answer = await fetch('/whep', {
        method: 'POST', headers: {'Content-Type': 'application/sdp'}, body: pc.localDescription.sdp});
    await pc.setRemoteDescription({type: 'answer', sdp: await answer.text()});
    for (let i = 0; i < 20; i++) await new Promise(r => video.requestVideoFrameCallback(r));
    const stats = [...(await pc.getStats()).values()];
    window.vp8 = pc;
    return stats.find(s => s.id === stats.find(s => s.type === 'inbound-rtp').codecId).mimeType;
}"""


def use_camera(page: Any) -> None:
    """Start the page's camera, and agree in the dialog."""
    page.get_by_role("button", name="Use my camera").click()
    page.get_by_role("button", name="Agree and start").click()


def test_page_shows_the_stream_in_h264(studio: Any, chromium: Browser) -> None:
    studio.status["errors"] = ["zmq: <b>one</b> message dropped"]
    studio.status |= {"state": "learning", "avatar_fps": 7.5, "psnr_db": 23.456, "latency_ms": 40.0, "viewers": 1}
    page = chromium.new_page()
    complaints: list[str] = []
    page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    requested: list[str] = []
    page.on("request", lambda request: requested.append(request.url))
    page.goto(studio.server.address)
    studio.watching(page)
    assert page.evaluate("window.__stats.codec") == "video/H264"
    image = studio.grab(page)
    assert image.shape == (512, 512, 3)
    assert studio.likeness(image) > 30.0
    assert studio.likeness(image[:, ::-1]) < 20.0
    assert studio.likeness(image[..., ::-1]) < 20.0
    studio.until(lambda: page.locator("#psnr").text_content() == "23.5")
    assert page.locator("#problems li").all_text_contents() == ["zmq: <b>one</b> message dropped"]
    assert page.locator("#state").text_content() == "learning"
    studio.until(lambda: page.locator("#veil").is_hidden())
    assert studio.server.viewers == 1
    assert studio.until(lambda: 0 < (page.evaluate("window.__stats.rtt") or 0) < 1000), "the round trip is measured"
    assert complaints == []
    assert all(url.startswith(studio.server.address) for url in requested), "nothing is loaded from other servers"
    page.close()
    studio.until(lambda: studio.server.viewers == 0)


def test_a_viewer_chooses_the_background(studio: Any, chromium: Browser) -> None:
    page = chromium.new_page()
    page.goto(studio.server.address)
    studio.until(lambda: page.locator("#torso").is_checked())
    page.select_option("#behind", "room")
    studio.until(lambda: str(studio.backgrounds.chosen) == "torso+room")
    page.uncheck("#torso")
    studio.until(lambda: str(studio.backgrounds.chosen) == "room")
    page.select_option("#behind", "colour")
    page.locator("#colour").fill("#ff8000")
    studio.until(lambda: str(studio.backgrounds.chosen) == "#ff8000")
    assert page.locator("#trouble").is_hidden()
    studio.backgrounds.choose("torso")  # chosen by another viewer
    studio.until(lambda: page.locator("#torso").is_checked() and page.locator("#behind").input_value() == "calm")


def test_a_status_that_is_older_than_a_choice_does_not_undo_it(studio: Any, chromium: Browser) -> None:
    page = chromium.new_page()
    page.goto(studio.server.address)
    studio.until(lambda: page.locator("#torso").is_checked())
    held: list[Any] = []  # requests for the status; the first one was answered by the daemon before the choice
    studio.status["viewers"] = 7
    page.route("**/status", lambda route: held.append((route, route.fetch() if not held else None)))
    while not held:
        page.wait_for_timeout(50)
    with page.expect_response("**/background"):
        page.uncheck("#torso")
    studio.until(lambda: str(studio.backgrounds.chosen) == "calm")
    route, older = held[0]
    route.fulfill(response=older)
    page.wait_for_function("() => document.querySelector('#viewers').textContent === '7'")
    assert not page.locator("#torso").is_checked()
    page.close()


def test_guidance_and_chart_are_drawn(studio: Any, chromium: Browser) -> None:
    seen = {"ahead": True, "left": False, "talk": True, "smile": False, "open": False, "brows": False}
    studio.status |= {"state": "learning", "source": "webcam", "psnr_db": 20.0, "latency_ms": 50.0}
    studio.status["guidance"] = {
        "ring": [1.0, 0.0, 0.33, 0.0, 0.0, 0.0, 0.0, 0.0],
        "seen": seen,
        "hint": "Turn your head to the left.",
    }
    page = chromium.new_page()
    troubles: list[str] = []
    page.on("console", lambda message: troubles.append(message.text))
    page.on("pageerror", lambda error: troubles.append(str(error)))
    page.goto(studio.server.address)
    studio.until(lambda: page.locator("#guide").is_visible())
    assert page.locator("#hint").text_content() == "Turn your head to the left."
    assert page.locator("#hint").get_attribute("aria-live") == "polite"
    label = "Seen so far: 1 of 8 directions, 1 expressions"
    assert page.locator("#ring").get_attribute("aria-label") == label
    colours = page.eval_on_selector_all("#ring path", "paths => paths.map((path) => getComputedStyle(path).stroke)")
    assert len(colours) == 12
    assert len(set(colours[:8])) == 3  # full, a third, nothing
    assert colours[0] == colours[8] != colours[9]  # talking was seen, a smile was not

    studio.status["psnr_db"] = 22.0
    studio.until(lambda: "L" in (page.locator("#chart path.psnr").get_attribute("d") or ""))
    assert page.locator("#chart .psnr-high").text_content() in ("22", "24")
    studio.until(lambda: "L" in (page.locator("#chart path.latency").get_attribute("d") or ""))

    studio.status["guidance"] = {"ring": [1.0] * 8, "seen": dict.fromkeys(seen, True), "hint": None}
    studio.until(lambda: page.locator("#guide").is_hidden())
    assert troubles == []


def test_a_viewer_without_h264_gets_vp8(studio: Any, chromium: Browser) -> None:
    page = chromium.new_page()
    page.goto(studio.server.address)
    assert page.evaluate(VP8_VIEWER) == "video/VP8"
    studio.watching(page)  # the page's own H.264 video continues
    assert studio.likeness(studio.grab(page, "#vp8")) > 25.0
    assert studio.likeness(studio.grab(page)) > 30.0


def test_viewers_share_one_encode(studio: Any, chromium: Browser, monkeypatch: pytest.MonkeyPatch) -> None:
    requests: list[object] = []  # for keyframes, by viewers that could not decode or for which frames were dropped
    request, drop = ViewerStream.on_keyframe_request, Audience._on_lost
    monkeypatch.setattr(ViewerStream, "on_keyframe_request", lambda viewer: (requests.append(viewer), request(viewer)))
    monkeypatch.setattr(Audience, "_on_lost", lambda audience, line: (requests.append(line), drop(audience, line)))
    pages = [chromium.new_page() for _ in range(3)]
    for page in pages:
        page.goto(studio.server.address)
    for page in pages:
        studio.watching(page)
        assert studio.likeness(studio.grab(page)) > 30.0
    assert studio.server.viewers == 3
    first, shown = studio.server.stream_stats(), [page.evaluate("window.__stats.frames") for page in pages]
    pages.pop().close()
    studio.until(lambda: studio.server.viewers == 2)
    for page, frames in zip(pages, shown, strict=False):
        studio.watching(page, frames + 30)
    last = studio.server.stream_stats()
    # Frames of each viewer since then; they joined one after another, so their totals differ.
    seen = min(page.evaluate("window.__stats.frames") - frames for page, frames in zip(pages, shown, strict=False))
    assert last.encoded - first.encoded < 3 * seen  # three encodes would make at least three times as many
    # The first one, at most one for each viewer that joins, and those that were requested.
    assert last.keyframes <= 4 + len(requests)


def test_the_browser_camera_is_received_and_can_be_stopped(
    studio: Any, launch_chromium: Callable[..., Browser], camera_film: tuple[Path, list[np.ndarray]]
) -> None:
    film, images = camera_film
    page = launch_chromium(*FILM_FLAGS, f"--use-file-for-fake-video-capture={film}").new_page()
    page.goto(studio.server.address)
    studio.watching(page, 5)
    use_camera(page)
    frames = [studio.camera.get(120.0) for _ in range(20)]
    assert studio.camera_events == [True]
    assert [f.frame_id for f in frames] == sorted({f.frame_id for f in frames})
    assert all(b.t_capture_ns > a.t_capture_ns for a, b in pairwise(frames))
    own = studio.until(lambda: page.evaluate("document.getElementById('own').videoWidth"))
    assert own > 0
    studio.until(lambda: page.locator("#own").is_visible())
    sent = frames[-1].rgb
    assert sent.dtype == np.uint8
    height, width = sent.shape[:2]
    seen = max(studio.psnr(sent, resized(image, width, height)) for image in images)
    assert seen > 20.0
    studio.watching(page, page.evaluate("window.__stats.frames") + 10)  # the avatar is still shown

    page.get_by_role("button", name="Stop using my camera").click()
    studio.until(lambda: studio.camera_events == [True, False])
    studio.until(lambda: page.locator("#own").is_hidden())
    page.get_by_role("button", name="Use my camera").click()  # without asking for consent again
    studio.until(lambda: studio.camera_events == [True, False, True])


def test_a_refused_camera_permission_is_explained(studio: Any, launch_chromium: Callable[..., Browser]) -> None:
    page = launch_chromium("--deny-permission-prompts").new_page()
    page.goto(studio.server.address)
    use_camera(page)
    alert = page.get_by_role("alert")
    alert.wait_for(timeout=120_000)
    assert "camera" in alert.text_content()
    assert page.get_by_role("button", name="Use my camera").is_enabled()


def test_the_page_reconnects_when_the_daemon_is_back(studio: Any, chromium: Browser) -> None:
    page = chromium.new_page()
    page.goto(studio.server.address)
    studio.watching(page, 5)
    port = int(studio.server.address.rstrip("/").rsplit(":", 1)[1])
    studio.server.stop()
    studio.until(lambda: page.locator("#state").text_content() == "offline")
    studio.until(lambda: page.locator("#veil").is_visible())

    class LiveDaemon(DaemonInterface):
        def status(self) -> dict[str, Any]:
            return {"state": "live"}

    again = MediaServer(StreamSettings(port=port), LiveDaemon())
    again.start()
    try:
        studio.until(lambda: page.locator("#state").text_content() == "live")
        studio.until(lambda: again.viewers == 1)
        page.locator("#veil").wait_for(state="hidden", timeout=120_000)
    finally:
        again.stop()


@pytest.mark.parametrize(("width", "height"), [(360, 740), (1280, 740), (740, 360)])
def test_layout_fits_phone_and_desktop(studio: Any, chromium: Browser, width: int, height: int) -> None:
    studio.status["state"] = "live"
    page = chromium.new_page(viewport={"width": width, "height": height})
    page.goto(studio.server.address)
    studio.watching(page, 5)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    for button in page.get_by_role("toolbar").get_by_role("button").all():
        box = button.bounding_box()
        assert box["height"] >= 44, "large enough for a finger"
        assert box["width"] >= 44
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= width
        assert box["y"] + box["height"] <= height, "visible without scrolling"
        assert button.evaluate("button => button.scrollWidth <= button.clientWidth"), "its text fits"
    names = set()
    for _ in range(12):
        page.keyboard.press("Tab")
        names.add(page.evaluate("document.activeElement.id"))
    assert {"avatar", "full", "camera", "mute", "audio", "freeze", "recalibrate", "torso", "behind"} <= names
    assert page.evaluate(UNNAMED) == [], "every control has a name for screen readers"


def resized(image: np.ndarray, width: int, height: int) -> np.ndarray:
    """The image as Chromium's fake camera delivers it: cropped to the requested aspect ratio, then scaled."""
    from PIL import Image

    h, w = image.shape[:2]
    crop_w, crop_h = min(w, round(h * width / height)), min(h, round(w * height / width))
    left, top = (w - crop_w) // 2, (h - crop_h) // 2
    window = Image.fromarray(image[top : top + crop_h, left : left + crop_w])
    return np.asarray(window.resize((width, height), Image.Resampling.BILINEAR))


def test_the_identity_question_is_shown_and_answered_by_keyboard(studio: Any, chromium: Browser) -> None:
    page = chromium.new_page()
    page.goto(studio.server.address)
    studio.until(lambda: page.locator("#state").inner_text() == "waiting")
    assert page.locator("#question").is_hidden()
    new = {"ago_s": 1.0, "kind": "new_avatar", "text": "another person is there: <b>a new avatar</b> was begun"}
    for button, same in (("Yes, it is me", True), ("Someone else", False)):
        studio.status["subject"] = {"question_open": True}
        studio.until(lambda: page.locator("#question").is_visible())
        page.get_by_role("button", name=button).focus()
        page.keyboard.press("Enter")
        studio.until(lambda: studio.answers != [])
        assert studio.answers.pop() is same
        studio.until(lambda: page.locator("#question").is_hidden())
    studio.status["events"] = [new]
    studio.until(lambda: page.locator("#notice").is_visible())
    assert "<b>" in page.locator("#notice").inner_text()  # text, not HTML
    assert page.locator("#trouble").is_hidden()


def test_without_consent_there_is_no_camera(studio: Any, launch_chromium: Callable[..., Browser]) -> None:
    page = launch_chromium(*FILM_FLAGS).new_page()
    page.add_init_script(
        "window.opened = 0; const open = navigator.mediaDevices.getUserMedia.bind(navigator.mediaDevices);"
        "navigator.mediaDevices.getUserMedia = (constraints) => (window.opened++, open(constraints));"
    )
    page.goto(studio.server.address)
    studio.watching(page, 5)
    for refuse in (lambda: page.get_by_role("button", name="Not now").click(), lambda: page.keyboard.press("Escape")):
        page.get_by_role("button", name="Use my camera").click()
        dialog = page.get_by_role("dialog", name="Before your camera starts")
        assert "Your face is learned" in dialog.inner_text()
        assert "on this machine" in dialog.inner_text()
        refuse()
        dialog.wait_for(state="hidden")
    assert page.evaluate("window.opened") == 0
    assert studio.camera_events == []


def test_buttons_and_keys_send_commands_to_the_daemon(studio: Any, chromium: Browser) -> None:
    studio.status |= {"state": "live", "training": {"state": "learning"}, "audio": {"muted": False}}
    page = chromium.new_page()
    page.goto(studio.server.address)
    studio.watching(page, 5)

    def pressed(name: str) -> bool:
        return page.get_by_role("button", name=name, exact=True).get_attribute("aria-pressed") == "true"

    page.get_by_role("button", name="Pause learning").click()
    studio.until(lambda: pressed("Resume learning"))
    studio.until(lambda: "Learning is paused" in page.locator("#sentence").inner_text())
    page.keyboard.press("f")
    studio.until(lambda: studio.commands == [("freeze", True), ("freeze", False)])
    studio.until(lambda: not pressed("Pause learning"))
    studio.status["training"] = {"state": "frozen"}  # by another viewer
    studio.until(lambda: page.get_by_role("button", name="Resume learning").is_visible())

    studio.commands.clear()
    page.keyboard.press("m")
    studio.until(lambda: studio.commands == [("mute", True)])
    studio.until(lambda: pressed("Unmute"))
    page.get_by_role("button", name="Calibrate again").click()
    studio.until(lambda: studio.commands[-1] == ("recalibrate",))

    studio.refusal = "no subject is known yet"
    page.keyboard.press("c")
    alert = page.get_by_role("alert").filter(has_text="No subject is known yet.")
    alert.wait_for(timeout=120_000)
    page.get_by_role("button", name="Resume learning").click()
    page.wait_for_timeout(300)
    assert pressed("Resume learning"), "a refused command changes nothing on the page"
    studio.refusal = None

    page.get_by_text("Keyboard", exact=True).click()
    page.get_by_label("Single-key shortcuts").uncheck()
    studio.commands.clear()
    page.keyboard.press("m")
    page.get_by_role("button", name="Unmute").click()
    studio.until(lambda: studio.commands == [("mute", False)])


def test_the_head_is_turned_by_dragging_and_by_keys(studio: Any, chromium: Browser) -> None:
    page = chromium.new_page()
    page.goto(studio.server.address)
    studio.watching(page, 5)
    box = page.locator("#avatar").bounding_box()
    middle = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(*middle)
    page.mouse.down()
    page.mouse.move(middle[0] + box["width"] / 4, middle[1] - box["height"] / 8, steps=5)
    page.mouse.up()
    kind, yaw, pitch = studio.until(lambda: studio.commands and studio.commands[-1][1] > 0.39 and studio.commands[-1])
    assert kind == "orbit"
    assert yaw == pytest.approx(0.4, abs=0.02), "to the right, like the pointer"
    assert pitch == pytest.approx(0.2, abs=0.02), "and up"
    page.mouse.move(*middle)  # the button is not pressed any more
    straight = page.get_by_role("button", name="Reset view")
    assert straight.is_visible()
    page.locator("#avatar").focus()
    page.keyboard.press("ArrowLeft")
    studio.until(lambda: studio.commands[-1][1] == pytest.approx(yaw - 0.08))
    for _ in range(40):
        page.keyboard.press("ArrowDown")
    studio.until(lambda: studio.commands[-1][2] == pytest.approx(-0.5))
    straight.click()
    studio.until(lambda: studio.commands[-1] == ("orbit", 0.0, 0.0))
    assert straight.is_hidden()
    studio.status["orbit"] = {"yaw": 0.3, "pitch": 0.0}  # turned by another viewer
    studio.until(straight.is_visible)
    straight.click()
    studio.until(lambda: studio.commands[-1] == ("orbit", 0.0, 0.0))


def test_withheld_frames_do_not_leave_the_browser(
    studio: Any,
    launch_chromium: Callable[..., Browser],
    camera_film: tuple[Path, list[np.ndarray]],
    models: Path,
    vision: None,
) -> None:
    studio.models = models
    studio.status["state"] = "live"
    page = launch_chromium(*FILM_FLAGS, f"--use-file-for-fake-video-capture={camera_film[0]}").new_page()
    violations: list[str] = []
    page.on("console", lambda message: violations.append(message.text) if "Content Security" in message.text else None)
    page.goto(studio.server.address)
    studio.watching(page, 5)
    assert page.get_by_role("button", name="Keep my video on this device").is_disabled(), "the camera is not started"
    use_camera(page)
    assert not studio.camera.get(120.0).landmarks_only
    private = page.get_by_role("button", name="Keep my video on this device")
    studio.until(private.is_enabled)

    private.click()
    page.get_by_role("alert").filter(has_text="The avatar is not known yet.").wait_for(timeout=120_000)
    assert private.get_attribute("aria-pressed") == "false"
    studio.landmarks_allowed = True
    private.click()
    studio.until(lambda: private.get_attribute("aria-pressed") == "true")
    assert page.get_by_text("Stays on this device").is_visible()
    first = studio.until(lambda: (frame := studio.camera.get(120.0)) and frame.landmarks_only and frame)
    frames = [studio.camera.get(120.0) for _ in range(15)]
    assert all(frame.landmarks_only and not frame.rgb.any() for frame in frames), "no frame is sent"
    points = np.stack([frame.landmarks.points for frame in frames if frame.landmarks is not None])
    assert len(points) >= 12, "there is a face in the film"
    assert 0.2 < points[:, :, 0].mean() < 0.8
    assert points[:, :, :2].std(1).min() > 0.03, "of the size of a face"
    assert first.rgb.shape == frames[-1].rgb.shape
    assert studio.camera_events[-1] is True, "the camera is still active"

    page.evaluate("window.dispatchEvent(new Event('pagehide'))")  # the connection ends and is replaced
    studio.until(lambda: studio.camera_events[-2:] == [False, True])
    assert studio.camera.get(120.0).landmarks_only, "the next connection sends no frame either"
    private.click()
    studio.until(lambda: not studio.camera.get(120.0).landmarks_only)

    page.reload()  # a known subject can withhold all frames
    studio.watching(page, 5)
    while studio.camera.get(1.0) is not None:
        pass
    page.get_by_role("button", name="Use my camera").click()
    keep = page.get_by_label("Keep my video on this device from the start")
    assert not keep.is_checked(), "by default the avatar goes on learning"
    keep.check()
    page.get_by_role("button", name="Agree and start").click()
    frames = [studio.camera.get(120.0) for _ in range(10)]
    assert all(frame.landmarks_only and not frame.rgb.any() for frame in frames)
    assert violations == []

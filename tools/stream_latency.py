"""Measure the stream in a real browser: rate, latency from capture to the painted picture, cost of the encode.

Every picture carries the wall-clock time of its making as a row of black and white squares; the page reads it back from
the video when a frame is presented.  Camera, tracker and avatar are not part of the figure, the display's scan-out
neither.

    python tools/stream_latency.py --seconds 15 --viewers 1 --json stream.json
"""

from __future__ import annotations

import argparse
import json
import shutil
import threading
import time
from pathlib import Path

import numpy as np
from playwright.sync_api import Page, sync_playwright

from telepresence.frames import ShownFrame
from telepresence.streaming import MediaServer, StreamHooks, StreamSettings

SIZE = 512
SQUARE = 32
BITS = 16  # of the time in milliseconds: it wraps after 65 s

READ = """async seconds => {
    const video = document.getElementById('avatar');
    const strip = Object.assign(document.createElement('canvas'), {width: 512, height: 32});
    const context = strip.getContext('2d', {willReadFrequently: true});
    const latencies = [], end = performance.now() + 1000 * seconds;
    let first, last;
    while (performance.now() < end) {
        const frame = await new Promise(r => video.requestVideoFrameCallback((_, metadata) => r(metadata)));
        const now = Date.now();
        context.drawImage(video, 0, 0, 512, 32, 0, 0, 512, 32);
        const pixels = context.getImageData(0, 16, 512, 1).data;
        let stamp = 0;
        for (let bit = 0; bit < 16; bit++) stamp = 2 * stamp + (pixels[4 * (32 * bit + 16) + 1] > 127);
        latencies.push((now - stamp) & 0xffff);
        last = frame.presentedFrames;
        first ??= last;
    }
    return {latencies, presented: last - first};
}"""


def stamped(background: np.ndarray, shift: int) -> np.ndarray:
    """A moving picture with the time in its upper edge."""
    picture = np.roll(background, 5 * shift, axis=1)
    stamp = int(time.time() * 1000) & 0xFFFF
    for bit in range(BITS):
        value = 255 * (stamp >> (BITS - 1 - bit) & 1)
        picture[:SQUARE, bit * SQUARE : (bit + 1) * SQUARE] = value
    return picture


def background() -> np.ndarray:
    """(512, 512, 3) uint8: smooth colour with soft edges, about as hard to encode as a face."""
    y, x = np.mgrid[0:SIZE, 0:SIZE] * (2 * np.pi / SIZE)
    waves = np.stack([np.sin(3 * x + np.sin(5 * y)), np.sin(2 * x + 4 * np.cos(y)), np.cos(x + 2 * y)], -1)
    grain = np.random.default_rng(0).normal(0.0, 4.0, (SIZE, SIZE, 1))
    return np.clip(128 + 90 * waves + grain, 0, 255).astype(np.uint8)


def feed(server: MediaServer, fps: float, going: threading.Event) -> None:
    picture, index, due = background(), 0, time.monotonic()
    while going.is_set():
        server.show(ShownFrame(index, time.monotonic_ns(), stamped(picture, index)))
        index, due = index + 1, due + 1.0 / fps
        time.sleep(max(0.0, due - time.monotonic()))


def measure(page: Page, seconds: float) -> dict[str, float]:
    result = page.evaluate(READ, seconds)
    latency = np.array(result["latencies"], dtype=float)
    return {
        "fps": round(result["presented"] / seconds, 1),
        "latency_ms_p50": float(np.median(latency)),
        "latency_ms_p95": float(np.percentile(latency, 95)),
        "freezes": page.evaluate("window.__stats.freezes"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the stream in a real browser.")
    parser.add_argument("--seconds", type=float, default=15.0)
    parser.add_argument("--viewers", type=int, default=1)
    parser.add_argument("--fps", type=int, default=30)
    parser.add_argument("--preset", default=StreamSettings.preset)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()

    server = MediaServer(StreamSettings(port=0, fps=options.fps, preset=options.preset), StreamHooks())
    server.start()
    going = threading.Event()
    going.set()
    feeder = threading.Thread(target=feed, args=(server, options.fps, going))
    feeder.start()
    try:
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(
                executable_path=shutil.which("chromium"),
                headless=True,
                args=["--no-sandbox", "--autoplay-policy=no-user-gesture-required"],
            )
            pages = [browser.new_page() for _ in range(options.viewers)]
            for page in pages:
                page.goto(server.address)
            time.sleep(6.0)  # until the jitter buffers have settled
            cpu = time.process_time()
            figures: dict[str, object] = dict(measure(pages[0], options.seconds))
            figures["process_cpu_percent"] = round(100 * (time.process_time() - cpu) / options.seconds, 1)
            stats = server.stream_stats()
            figures |= {"encode_ms": stats.encode_ms, "capture_to_encoded_ms": stats.latency_ms, "kbps": stats.kbps}
            figures |= {"keyframes": stats.keyframes, "viewers": server.viewers, "preset": options.preset}
            browser.close()
    finally:
        going.clear()
        feeder.join()
        server.stop()
    print(json.dumps(figures, indent=2))
    if options.json is not None:
        options.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()

"""How many frames per second the viewer plays.

    python benchmarks/viewer.py [SEQUENCE] [--seconds 6] [--no-browser]

Plays a saved sequence (by default the demo's, made first): the server alone 8 times as fast as recorded, so that it is
the limit, and with a browser as fast as recorded. Prints frames applied per second by the server, and with headless
chromium those that the page has drawn, told by the number beside its slider. Chromium without a GPU draws with the
processor's cores: on a desktop the page has it easier.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import threading
import time
from pathlib import Path

from event_sam3d_ros.viewer.server import Viewer
from event_sam3d_ros.viewer.sources import SourceOptions, open_frames

SPEED = 8.0
WATCH = """() => {
  window.shown = 0; let last = "";
  const look = () => {
    const number = document.querySelector("input.mantine-NumberInput-input").value;
    if (number !== last) { last = number; window.shown += 1; }
    requestAnimationFrame(look);
  };
  look();
}"""


def make_demo_sequence(folder: Path) -> Path:
    """The demo's sequence."""
    from event_sam3d_ros.reconstructor import Reconstructor
    from event_sam3d_ros.recordings.files import open_recording
    from event_sam3d_ros.sequence_maker import make_sequence

    bag = Path(__file__).parents[1] / "data/demo_bag"
    make_sequence(open_recording(bag), Reconstructor.from_pretrained("nano", "cpu"), folder)
    return folder


def measure(sequence: Path, seconds: float, with_browser: bool) -> None:
    """Prints the frames per second of one run."""
    viewer = Viewer(open_frames(sequence, SourceOptions()), "127.0.0.1", 0, playing=True)
    viewer.player.speed = 1.0 if with_browser else SPEED
    applied, show = [], viewer.player._show
    viewer.player._show = lambda index, frame: (show(index, frame), applied.append(index))
    thread = threading.Thread(target=viewer.run)
    thread.start()
    try:
        if with_browser:
            shown, server, elapsed = _in_browser(viewer.url, seconds, applied)
            print(f"with chromium: {server / elapsed:.1f} frames/s applied, {shown / elapsed:.1f} frames/s in the page")
        else:
            time.sleep(1)
            first, begin = len(applied), time.perf_counter()
            time.sleep(seconds)
            print(f"server alone: {(len(applied) - first) / (time.perf_counter() - begin):.1f} frames/s applied")
    finally:
        viewer.stop()
        thread.join()
        viewer.close()


def _in_browser(url: str, seconds: float, applied: list[int]) -> tuple[int, int, float]:
    """Frames that the page showed, those that the server applied, and in how many seconds."""
    from playwright.sync_api import sync_playwright

    flags = ["--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--disable-background-networking"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=flags)
        page = browser.new_page(viewport={"width": 1280, "height": 800})
        page.goto(url)
        page.get_by_text("frame").first.wait_for(timeout=60_000)
        page.wait_for_timeout(5000)
        page.evaluate(WATCH)
        first, begin = len(applied), time.perf_counter()
        page.wait_for_timeout(seconds * 1000)
        shown = page.evaluate("window.shown")
        count, elapsed = len(applied) - first, time.perf_counter() - begin
        browser.close()
    return shown, count, elapsed


def main() -> None:
    """See the module's text."""
    parser = argparse.ArgumentParser()
    parser.add_argument("sequence", nargs="?", type=Path)
    parser.add_argument("--seconds", type=float, default=6.0)
    parser.add_argument("--no-browser", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        sequence = options.sequence or make_demo_sequence(Path(scratch) / "demo")
        measure(sequence, options.seconds, False)
        if not options.no_browser:
            measure(sequence, options.seconds, True)


if __name__ == "__main__":
    main()

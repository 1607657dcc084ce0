"""The viewer in a real browser: Debian's chromium without a screen, WebGL by its software renderer.

With VIEWER_PICTURES=FOLDER the pictures of the documentation are written there.
"""

import os
import re
import shutil
import threading
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
import pytest

from event_sam3d_ros.reconstructor import Reconstructor
from event_sam3d_ros.recordings.files import open_recording
from event_sam3d_ros.sequence import load_sequence
from event_sam3d_ros.sequence_maker import make_sequence
from event_sam3d_ros.viewer.server import Viewer
from event_sam3d_ros.viewer.sources import SourceOptions, open_frames

BAG = Path(__file__).parents[2] / "data/demo_bag"
FLAGS = (
    "--use-angle=swiftshader --enable-unsafe-swiftshader --disable-background-networking --disable-component-update "
    "--disable-sync --disable-quic --no-first-run"
).split()
SIZE = {"width": 1280, "height": 860}
WAIT_MS = 60_000
# Of the libraries in the page: nothing that the viewer could do otherwise.
KNOWN = re.compile("THREE.Clock|swiftshader|GPU stall due to ReadPixels", re.IGNORECASE)


@pytest.fixture(scope="module")
def chromium():
    path = shutil.which("chromium")
    if path is None:
        missing = "no chromium: sudo apt-get install chromium (with CI=true, scripts/setup.sh does it)"
        pytest.fail(missing) if os.environ.get("CI") == "true" else pytest.skip(missing)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Real output: every fifth frame of the demo, 6 per second."""
    path = tmp_path_factory.mktemp("viewer") / "demo"
    make_sequence(open_recording(BAG), Reconstructor.from_pretrained("nano", "cpu"), path, every=5)
    return path


@contextmanager
def running(frames, playing=False):
    viewer = Viewer(frames, "127.0.0.1", 0, playing=playing)
    thread = threading.Thread(target=viewer.run)
    thread.start()
    try:
        yield viewer
    finally:
        viewer.stop()
        thread.join(30)
        viewer.close()
    assert not thread.is_alive()


@contextmanager
def opened(chromium, viewer):
    """The page; at the end the browser must have had nothing to complain about."""
    said = []
    page = chromium.new_page(viewport=SIZE)
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("console", lambda message: said.append(message.text) if message.type in ("error", "warning") else None)
    page.set_default_timeout(WAIT_MS)
    page.goto(viewer.url)
    close = page.locator(".mantine-Notification-closeButton").first  # that WebGL is done by software
    close.click()
    yield page
    page.close()
    assert [text for text in said if not KNOWN.search(text)] == []


IN_THE_MIDDLE = 10  # the frame of the bundled recording in which no panel hides the object


def at_frame(page, number):
    page.get_by_text(f"frame {number} of").wait_for()


def drawn(page):
    """The page as a picture, when it no longer changes."""
    before = None
    for _ in range(40):
        picture = page.screenshot()
        if picture == before:
            break
        before = picture
        page.wait_for_timeout(250)
    return cv2.imdecode(np.frombuffer(picture, np.uint8), cv2.IMREAD_COLOR).astype(int)


def box_on_page(sequence, index):
    """Pixels x0, y0, x1, y1 of the page in which the object's points lie, seen through the frame's camera: its picture
    is as high as the page, and in its middle."""
    frame = sequence[index]
    points = np.concatenate([item.points for item in frame.objects])
    pixels = points @ frame.K.T
    pixels = pixels[:, :2] / pixels[:, 2:]
    scale = SIZE["height"] / frame.mask.shape[0]
    rays = (pixels - frame.K[:2, 2]) * scale + (SIZE["width"] / 2, SIZE["height"] / 2)
    return *rays.min(0).round().astype(int), *rays.max(0).round().astype(int)


def save(page, name):
    folder = os.environ.get("VIEWER_PICTURES")
    if folder:
        page.screenshot(path=Path(folder) / name, type="jpeg", quality=80)


def test_a_sequence_in_the_browser(chromium, folder, tmp_path):
    sequence = load_sequence(folder)
    frames = open_frames(folder, SourceOptions(BAG / "ground_truth.yaml"))
    with running(frames) as viewer, opened(chromium, viewer) as page:
        at_frame(page, 0)
        assert page.get_by_text("demo: demo_bag").is_visible()

        forward = page.get_by_text("forward", exact=True)
        forward.click()
        at_frame(page, 1)
        page.get_by_text("back", exact=True).click()
        at_frame(page, 0)
        for number in range(1, 7):
            forward.click()
            at_frame(page, number)
        drawn(page)
        save(page, "viewer.jpg")

        play = page.get_by_role("button", name="Play", exact=True)
        play.click()
        at_frame(page, 10)
        page.get_by_role("button", name="Pause", exact=True).click()
        play.wait_for()
        number = viewer.player.index  # a slow machine notices the button late
        while number != IN_THE_MIDDLE:
            towards, step = ("forward", 1) if number < IN_THE_MIDDLE else ("back", -1)
            page.get_by_text(towards, exact=True).click()
            number += step
            at_frame(page, number)

        page.get_by_text("Look through the camera").click()
        seen = drawn(page)
        x0, y0, x1, y1 = box_on_page(sequence, number)
        box = page.get_by_label(re.compile("^object 1$"))
        box.uncheck()
        hidden = drawn(page)
        changed = np.abs(seen - hidden).max(2) > 30
        panel = int(page.get_by_text("Playback").bounding_box()["x"]) - 40
        assert 0 <= x0 < x1 < panel and 0 <= y0 < y1 < SIZE["height"]
        assert changed[y0:y1, x0:x1].mean() > 0.3, "the object was not there, or did not go"
        box.check()
        assert (np.abs(seen - drawn(page)).max(2) > 30)[y0:y1, x0:x1].mean() < 0.02, "the object did not come back"

        with page.expect_download() as download:
            page.get_by_text("Save objects (PLY)").click()
        download.value.save_as(tmp_path / "objects.ply")
        header = (tmp_path / "objects.ply").read_bytes()[:200].decode("latin-1")
        assert "element vertex" in header and "element vertex 0\n" not in header
        with page.expect_download() as download:
            page.get_by_text("Save picture (PNG)").click()
        download.value.save_as(tmp_path / "view.png")
        assert cv2.imread(str(tmp_path / "view.png")).std() > 5


def test_a_recording_in_the_browser_while_it_is_read(chromium):
    frames = open_frames(BAG, SourceOptions(device="cpu"))
    with running(frames, playing=True) as viewer, opened(chromium, viewer) as page:
        page.get_by_text(re.compile(r"frame ([6-9]|\d\d) of")).wait_for()
        page.get_by_role("button", name="Pause", exact=True).click()
        page.get_by_role("button", name="Play", exact=True).wait_for()
        at_frame(page, viewer.player.index)
        page.get_by_text("Latency, ms").scroll_into_view_if_needed()
        page.get_by_text("Save picture (PNG)").scroll_into_view_if_needed()
        picture = drawn(page)
        for plot in page.locator(".u-over").all():  # history and latency: each has its lines
            box = {side: int(value) for side, value in plot.bounding_box().items()}
            inside = picture[box["y"] : box["y"] + box["height"], box["x"] : box["x"] + box["width"]]
            assert inside.size and np.ptp(inside, axis=2).max() > 60, "a plot without a coloured line"
        save(page, "viewer_plots.jpg")

"""The viewer without a browser: what is shown when, what is kept, what is refused, what is taken away."""

import dataclasses
import socket
import threading
import time

import numpy as np
import pytest
import viser

from event_sam3d_ros.cli import main
from event_sam3d_ros.errors import ConfigurationError, InputError
from event_sam3d_ros.events.events import Events
from event_sam3d_ros.events.representations import tencode
from event_sam3d_ros.viewer.access import refusal
from event_sam3d_ros.viewer.exports import as_png, objects_as_ply
from event_sam3d_ros.viewer.frames import FrameStore, History, ViewFrame, ViewObject, evenly
from event_sam3d_ros.viewer.panel import _plot
from event_sam3d_ros.viewer.pictures import color_of, event_points, with_masks
from event_sam3d_ros.viewer.player import Player
from event_sam3d_ros.viewer.scene import up_axis
from event_sam3d_ros.viewer.server import Viewer, open_server
from event_sam3d_ros.viewer.sources import SourceOptions, open_frames

MS = 1_000_000


def cube(name="1", x=0.0, score=0.5):
    pose = np.eye(4)
    pose[:3, 3] = x, 0, 1
    points = np.float32([[0, 0, 0], [0.1, 0, 0], [0, 0.1, 0]])
    return ViewObject(name, int(name), pose, np.full(3, 0.2), points, np.full((3, 3), 9, np.uint8), score)


def frame(number, bytes_=0, period_ms=10):
    rgb = np.zeros((1, max(bytes_ // 3, 1), 3), np.uint8)
    return ViewFrame(1_000 * MS + number * period_ms * MS, rgb=rgb, objects=(cube(x=number),))


def filled(count, **options):
    store = FrameStore("test", **options)
    for number in range(count):
        store.append(frame(number))
    store.tell("", complete=not store.live)
    return store


class Shown:
    """A player at work, and the frames that it has shown."""

    def __init__(self, frames, playing=False):
        self.indices = []
        self.player = Player(frames, lambda index, _: self.indices.append(index), playing=playing)
        self.thread = threading.Thread(target=self.player.run)
        self.thread.start()

    def wait_for(self, condition):
        deadline = time.monotonic() + 20
        while not condition(self.indices):
            assert time.monotonic() < deadline, self.indices
            time.sleep(0.005)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.player.stop()
        self.thread.join(20)
        assert not self.thread.is_alive()


def test_every_frame_is_shown_once_in_order():
    with Shown(filled(7), playing=True) as shown:
        shown.player.loop = False
        shown.wait_for(lambda seen: len(seen) == 7)
        shown.wait_for(lambda _: not shown.player.playing)
        shown.player.play(True)  # from the end: anew
        shown.wait_for(lambda seen: len(seen) == 14)
    assert shown.indices == [*range(7), *range(7)]


def test_a_loop_goes_on():
    with Shown(filled(3), playing=True) as shown:
        shown.wait_for(lambda seen: len(seen) >= 7)
    assert shown.indices[:7] == [0, 1, 2, 0, 1, 2, 0]


def test_step_and_seek_stay_inside_and_pause():
    with Shown(filled(4)) as shown:
        for act, expected in (
            (lambda: None, 0),
            (lambda: shown.player.step(1), 1),
            (lambda: shown.player.step(-1), 0),
            (lambda: shown.player.seek(2), 2),
            (lambda: shown.player.seek(99), 3),
            (lambda: shown.player.step(-9), 0),
        ):
            act()
            shown.wait_for(lambda seen, expected=expected: seen and seen[-1] == expected)
        assert not shown.player.playing


def test_of_a_live_source_the_newest_is_shown():
    store = filled(5, live=True)
    with Shown(store, playing=True) as shown:
        shown.wait_for(lambda seen: seen and seen[-1] == 4)
        store.append(frame(5))
        shown.wait_for(lambda seen: seen[-1] == 5)


def test_speed_is_that_of_the_stamps():
    """The due time of the next frame follows from the stamps, not from how fast frames are shown."""
    with Shown(filled(3)) as shown:
        shown.player.seek(0)
        shown.wait_for(bool)
        shown.player.speed = 0.01  # 10 ms become a second
        shown.player.step(1)
        shown.wait_for(lambda seen: seen[-1] == 1)
        shown.player.play(True)
        time.sleep(0.1)
        assert shown.indices[-1] == 1


def test_a_reader_waits_for_the_watcher_and_loses_nothing():
    store = FrameStore("test", memory=3000)
    appended = []
    thread = threading.Thread(target=lambda: [appended.append(store.append(frame(n, 1000))) for n in range(9)])
    thread.start()
    deadline = time.monotonic() + 20
    for number in range(9):
        while (one := store.frame(number)) is None:
            assert time.monotonic() < deadline
        assert one.stamp_ns == frame(number).stamp_ns
        first, behind = store.span()
        assert behind - first <= 4
    thread.join(20)
    assert appended == [True] * 9


def test_a_live_store_keeps_the_newest_and_a_closed_one_lets_go():
    store = FrameStore("test", live=True, memory=3000)
    for number in range(9):
        store.append(frame(number, 1000))
    first, behind = store.span()
    assert behind == 9 and 2 <= behind - first <= 4
    assert store.frame(0) is None and store.frame(9) is None and store.frame(8) is not None
    blocked = FrameStore("test", memory=1)
    blocked.append(frame(0, 1000))
    thread = threading.Thread(target=lambda: results.append(blocked.append(frame(1, 1000))))
    results = []
    thread.start()
    blocked.close()
    thread.join(20)
    assert results == [False]


def test_history_has_gaps_where_objects_are_not():
    history = History()
    history.add(5 * MS, {"1": {"score": 0.5}}, {"model": 3.0}, np.zeros(3))
    history.add(15 * MS, {"2": {"score": 0.25, "iou": 1.0}}, {})
    assert history.quantities() == ["score", "iou"]
    times, lines = history.objects("score")
    np.testing.assert_allclose(times, [0, 0.01])
    np.testing.assert_array_equal(lines["1"], [0.5, np.nan])
    np.testing.assert_array_equal(lines["2"], [np.nan, 0.25])
    np.testing.assert_array_equal(history.milliseconds()[1]["model"], [3, np.nan])
    assert history.camera_path().shape == (1, 3)
    for number in range(3000):
        history.add(number * MS, {}, {})
    assert len(history.objects("score")[0]) == 512


def test_history_counts_all_frames_and_has_lines_for_the_objects_seen_last():
    history = History()
    for number in range(21_000):
        history.add(number * MS, {str(number // 100): {"score": 0.5}}, {})
    assert history.added == 21_000
    _, lines = history.objects("score")
    assert sorted(map(int, lines)) == [*range(210 - 24, 210)]


def test_evenly_keeps_both_ends():
    assert evenly(0, 5).tolist() == [] and evenly(3, 5).tolist() == [0, 1, 2]
    chosen = evenly(1000, 7)
    assert len(set(chosen.tolist())) == 7 and (chosen[0], chosen[-1]) == (0, 999)


def test_event_points_are_where_and_when_the_events_were():
    t, x, y, p = np.array([0, 75, 99]), np.array([0, 4, 9]), np.array([0, 2, 3]), np.array([1, 0, 1])
    image = tencode(
        Events(t.astype(np.int64), x.astype(np.uint16), y.astype(np.uint16), p.astype(np.uint8)), 0, 100, 10, 4
    )
    points, colors = event_points(image, 100)
    np.testing.assert_allclose(points[:, 0], [-0.45, -0.05, 0.45], atol=1e-6)
    np.testing.assert_allclose(points[:, 1], [-0.15, 0.05, 0.15], atol=1e-6)
    np.testing.assert_allclose(points[:, 2], [1, 0.25, 0.01], atol=0.005)
    assert [color.argmax() for color in colors] == [0, 2, 0]
    assert len(event_points(np.full((50, 50, 3), 255, np.uint8), 100)[0]) == 100
    assert event_points(np.zeros((4, 4, 3), np.uint8), 100)[0].shape == (0, 3)


def test_masks_are_drawn_in_the_colours_of_their_tracks_unless_hidden():
    rgb, tracks = np.zeros((9, 9, 3), np.uint8), np.zeros((9, 9), np.uint32)
    tracks[2:6, 2:6] = 70_000
    picture = with_masks(rgb, tracks)
    assert tuple(picture[2, 2]) == color_of(70_000) and picture[3, 3].any() and not picture[7, 7].any()
    assert not rgb.any() and not with_masks(rgb, None).any()


def test_up_is_the_nearest_axis():
    np.testing.assert_array_equal(up_axis(np.eye(4)), [0, -1, 0])
    pose = np.eye(4)
    pose[:3, :3] = [[0, 0.1, 1], [-1, 0, 0], [0, -1, 0.1]]  # looks along x, z up
    np.testing.assert_array_equal(up_axis(pose), [0, 0, 1])


def test_plots_have_a_range_whatever_is_missing():
    nan = np.nan
    plot = _plot(np.array([0, 0.1, 0.2]), {"1": np.array([0.52, nan, 0.58]), "2": np.full(3, nan)}, 0.19)
    assert plot.scales["y"]["range"] == pytest.approx((0.5, 0.6)) and plot.scales["x"] == {"time": False}
    assert len(plot.data) == len(plot.series) == 5
    np.testing.assert_array_equal(plot.data[2], [nan, nan, 0.58])  # the dot at what is shown
    for values in (
        np.full(3, nan),
        np.zeros(3),
        np.full(3, 7.0),
        np.array([-1e9, 0, 1e9]),
        np.array([-2.0, -2.0, nan]),
    ):
        low, high = _plot(np.arange(3.0), {"1": values}, None).scales["y"]["range"]
        finite = values[np.isfinite(values)]
        assert low < high and (low <= finite).all() and (finite <= high).all()


def test_exports_open(tmp_path):
    import cv2
    import open3d

    path = tmp_path / "objects.ply"
    path.write_bytes(objects_as_ply([cube(x=2.0), cube("2")]))
    points = np.asarray(open3d.io.read_point_cloud(str(path)).points)
    np.testing.assert_allclose(points[[0, 3]], [[2, 0, 1], [0, 0, 1]], atol=1e-6)
    picture = np.zeros((4, 5, 3), np.uint8)
    picture[..., 0] = 200
    assert cv2.imdecode(np.frombuffer(as_png(picture), np.uint8), 1)[0, 0].tolist() == [0, 0, 200]


def test_addresses_that_cannot_be_had_are_told():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ConfigurationError, match=f"port {port}"):
            open_server("127.0.0.1", port)
    with pytest.raises(ConfigurationError, match="192.0.2.1"):
        open_server("192.0.2.1", 0)  # no address of this machine (RFC 5737)


@pytest.mark.parametrize("words", [["--port", "65536"], ["--port", "x"], ["--port", "-1"]])
def test_a_wrong_port_is_a_wrong_command_line(words):
    with pytest.raises(SystemExit) as ended:
        main(["view", "nothing", *words])
    assert ended.value.code == 2


def test_a_wrong_path_is_one_sentence(tmp_path, capsys):
    assert main(["view", str(tmp_path / "none")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    (tmp_path / "sequence.npz").write_bytes(b"")
    with pytest.raises(InputError):
        open_frames(tmp_path, SourceOptions())


def handles(server, folder):
    return {path for path in server.scene._handle_from_node_name if path.startswith(folder) and path.count("/") == 2}


@pytest.fixture
def seen():
    """Makes viewers of frames; their server, panel and scene can be looked at without a page."""
    opened = []

    def view(frames):
        opened.append(Viewer(frames, "127.0.0.1", 0, playing=False))
        return opened[-1]

    yield view
    for viewer in opened:
        viewer.close()


def test_what_a_source_says_is_in_the_page_before_and_without_any_frame(seen):
    store = FrameStore("robot <1>", live=True)
    store.tell("waiting for results")
    viewer = seen(store)
    assert "robot &lt;1&gt;" in viewer._panel._status.content and "waiting for results" in viewer._panel._status.content
    thread = threading.Thread(target=viewer.run)
    thread.start()
    try:
        store.tell("it broke off", complete=True)
        wait_until(lambda: "it broke off" in viewer._panel._status.content)
        assert viewer._panel._play.label == "Play"
    finally:
        viewer.stop()
        thread.join(20)


def test_the_bar_grows_while_it_is_paused_and_the_button_tells_the_end(seen):
    store = FrameStore("growing")
    store.append(frame(0))
    viewer = seen(store)
    viewer.player.loop = False
    thread = threading.Thread(target=viewer.run)
    thread.start()
    try:
        wait_until(lambda: viewer.player.index == 0)
        for number in range(1, 9):
            store.append(frame(number))
        wait_until(lambda: viewer._panel._slider.max == 8)
        assert "frame 0 of 0 to 8 and more" in viewer._panel._status.content
        viewer.player.play(True)
        store.tell("", complete=True)
        wait_until(lambda: viewer.player.index == 8 and not viewer.player.playing)
        wait_until(lambda: viewer._panel._play.label == "Play")
        assert "frame 8 of 0 to 8," in viewer._panel._status.content
    finally:
        viewer.stop()
        thread.join(20)


def wait_until(condition):
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_objects_that_come_and_go_for_hours_do_not_fill_the_page(seen):
    viewer = seen(filled(1))
    for number in range(120):
        viewer._show(number, ViewFrame(number * MS, objects=(cube(str(number)), cube("7000"))))
    assert handles(viewer._server, "/objects/") == {f"/objects/{n}" for n in (*range(120 - 31, 120), 7000)}
    assert len(viewer._panel._objects) == 32 and "7000" in viewer._panel._objects
    viewer._show(120, ViewFrame(0, objects=(cube("3"),)))  # seen again
    assert viewer._scene._objects["3"].root.visible
    many = tuple(cube(str(number)) for number in range(200, 250))
    viewer._show(121, ViewFrame(0, objects=many))  # more than are kept, but all in sight
    assert handles(viewer._server, "/objects/") == {f"/objects/{n}" for n in range(200, 250)}


def test_names_are_shown_and_told_apart_whatever_is_in_them(seen):
    items = tuple(dataclasses.replace(cube(), name=name) for name in ("a/b", "a_b", "../x", "<i>"))
    viewer = seen(filled(1))
    viewer._show(0, ViewFrame(0, objects=items))
    assert len(handles(viewer._server, "/objects/")) == 4
    assert "&lt;i&gt;" in viewer._panel._table.content and "<i>" not in viewer._panel._table.content


def test_the_camera_has_the_angle_of_the_whole_picture(seen):
    K = np.array([[1000.0, 0, 640], [0, 1000, 360], [0, 0, 1]])
    viewer = seen(filled(1))
    viewer._show(0, ViewFrame(0, rgb=np.zeros((720, 1280, 3), np.uint8), K=K))
    frustum = viewer._scene._frustum
    assert frustum.image.shape[1] == 640
    assert frustum.fov == pytest.approx(2 * np.arctan(0.36)) and frustum.aspect == pytest.approx(1280 / 720)
    viewer._show(1, ViewFrame(0, rgb=np.zeros((480, 640, 3), np.uint8), K=K))
    assert frustum.fov == pytest.approx(2 * np.arctan(0.24)) and frustum.aspect == pytest.approx(4 / 3)


def test_the_view_is_that_of_the_first_frame_with_something_in_it(seen):
    viewer = seen(filled(1))
    viewer._show(0, ViewFrame(0, rgb=np.zeros((9, 9, 3), np.uint8), K=np.eye(3)))
    far = cube()
    far.pose[:3, 3] = 0, 0, 6
    viewer._show(1, ViewFrame(1, objects=(far,)))
    assert viewer._scene._distance == pytest.approx(6)
    assert np.linalg.norm(viewer._server.initial_camera.look_at) > 4
    viewer._show(2, ViewFrame(2, objects=(cube(),)))  # the view stays the user's from then on
    assert viewer._scene._distance == pytest.approx(6)


def test_a_picture_is_never_that_of_another_frame(seen):
    viewer = seen(filled(1))
    viewer._show(0, ViewFrame(0, rgb=np.full((9, 9, 3), 200, np.uint8)))
    assert viewer._panel._photo.visible
    viewer._show(1, ViewFrame(1, objects=(cube(),)))
    assert not viewer._panel._photo.visible


@pytest.mark.parametrize(
    ("host", "origin", "is_local", "refused"),
    [
        ("127.0.0.1:8080", None, True, None),
        ("127.0.0.1:8080", "http://127.0.0.1:8080", True, None),
        ("localhost:9000", "http://localhost:9000", True, None),  # through a tunnel of ssh
        ("[::1]:8080", "http://[::1]:8080", True, None),
        ("robot.local:8080", "http://robot.local:8080", False, None),
        ("127.0.0.1:8080", "http://evil.example", True, "evil.example"),
        ("127.0.0.1:8080", "http://127.0.0.1:9999", True, "127.0.0.1:9999"),  # another server on this machine
        ("127.0.0.1:8080", "null", True, "null"),
        ("evil.example:8080", "http://evil.example:8080", True, "this machine alone"),  # DNS rebinding
        ("robot.local:8080", "http://evil.example:8080", False, "evil.example"),
        (None, None, True, "Host"),
    ],
)
def test_pages_of_others_are_refused(host, origin, is_local, refused):
    why = refusal(host, origin, is_local=is_local)
    assert (why is None) if refused is None else (refused in why)


def test_a_foreign_page_gets_no_connection_and_no_tunnel_is_opened(seen):
    from websockets.exceptions import InvalidStatus
    from websockets.sync.client import connect

    viewer = seen(filled(1))
    url, subprotocols = viewer.url.replace("http", "ws"), [f"viser-v{viser.__version__}"]
    with connect(url, origin=viewer.url, subprotocols=subprotocols) as own:
        assert own.recv(timeout=20)
    with pytest.raises(InvalidStatus) as refused:
        connect(url, origin="http://evil.example", subprotocols=subprotocols)
    assert refused.value.response.status_code == 403
    assert viewer._server.request_share_url() is None and viewer._server._share_tunnel is None

"""Agreement without a truth: what agrees scores high, what does not scores low, and poses lie where they should."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from event_sam3d_ros.errors import RecordingError
from event_sam3d_ros.evaluation.bag_results import Running, Series
from event_sam3d_ros.evaluation.consistency import Previous, agreement, edge_contrast, overlap
from event_sam3d_ros.evaluation.poses import LONGEST_GAP_NS, CameraPose, PoseTrack, read_tum
from event_sam3d_ros.evaluation.report_plots import bar_plot, line_plot
from event_sam3d_ros.evaluation.solids import Solid
from event_sam3d_ros.events.events import Events
from event_sam3d_ros.events.representations import tencode

WIDTH, HEIGHT, WINDOW_US = 160, 120, 50_000
MS = 1_000_000


def disc(x: float, y: float, radius: float) -> np.ndarray:
    rows, columns = np.indices((HEIGHT, WIDTH))
    return (columns - x) ** 2 + (rows - y) ** 2 <= radius**2


def events_of_a_moving_disc(speed_px: float) -> np.ndarray:
    """Tencode image of the outline of a disc whose centre is at (80, 60) in the window's middle."""
    rng = np.random.default_rng(0)
    angle, t = rng.uniform(0, 2 * np.pi, 4000), np.sort(rng.integers(0, WINDOW_US, 4000))
    x = 80 + 25 * np.cos(angle) + speed_px * (t / WINDOW_US - 0.5)
    y = 60 + 25 * np.sin(angle)
    pixels = np.rint(x).astype(np.uint16), np.rint(y).astype(np.uint16)
    return tencode(Events(t, *pixels, rng.integers(0, 2, 4000).astype(np.uint8)), 0, WINDOW_US, WIDTH, HEIGHT)


@pytest.mark.parametrize("speed_px", [0.0, 8.0, -12.0])
def test_events_on_the_outline_have_a_high_contrast_also_in_motion(speed_px: float) -> None:
    image = events_of_a_moving_disc(speed_px)
    right = edge_contrast(image, disc(80, 60, 25))
    wrong = edge_contrast(image, disc(80, 60, 15))
    assert right is not None and wrong is not None
    assert right > 0.8 and wrong < 0.0


def test_no_contrast_without_events_or_outline() -> None:
    assert edge_contrast(np.zeros((HEIGHT, WIDTH, 3), np.uint8), disc(80, 60, 25)) is None
    assert edge_contrast(events_of_a_moving_disc(0), np.zeros((HEIGHT, WIDTH), bool)) is None
    assert edge_contrast(events_of_a_moving_disc(0), np.ones((HEIGHT, WIDTH), bool)) is None


def test_overlap_of_silhouettes() -> None:
    assert overlap(disc(80, 60, 20), disc(80, 60, 20)) == 1.0
    assert overlap(disc(40, 60, 20), disc(120, 60, 20)) == 0.0
    assert overlap(np.zeros((4, 4), bool), np.zeros((4, 4), bool)) == 0.0


def solid(position: tuple[float, float, float], rotation: np.ndarray, filled: int = 64) -> Solid:
    grid = np.zeros((64,) * 3, bool)
    grid[:filled] = True
    return Solid(grid, rotation, np.array(position), np.full(3, 0.2))


def test_an_object_that_stands_still_in_the_world_makes_no_step() -> None:
    turn = Rotation.from_euler("y", 20, degrees=True)
    first = CameraPose(0, np.zeros(3), np.array([0, 0, 0, 1.0]))
    second = CameraPose(100 * MS, np.array([0.3, 0.0, 0.1]), turn.as_quat())
    point = np.array([0.1, 0.0, 1.0])
    seen_again = turn.inv().apply(point - second.position)
    before = Previous(0, solid((0.1, 0.0, 1.0), np.eye(3)), True, first)
    again = solid(tuple(seen_again), turn.inv().as_matrix())
    values = agreement(again, True, 100 * MS, second, before)
    assert values["shape_agreement"] == 1.0
    assert values["world_step_m"] == pytest.approx(0, abs=1e-9)
    assert values["world_step_deg"] == pytest.approx(0, abs=1e-4)
    assert agreement(again, True, 100 * MS, None, before).keys() == {"shape_agreement"}
    assert agreement(again, False, 100 * MS, second, before).keys() == {"shape_agreement", "world_step_deg"}
    assert agreement(again, True, 2000 * MS, second, before) == {}
    assert agreement(again, True, 100 * MS, second, None) == {}
    half = agreement(solid((0.1, 0, 1.0), np.eye(3), 32), True, 100 * MS, first, before)
    assert half["shape_agreement"] == 0.5


@given(st.lists(st.integers(0, 10**10), min_size=2, max_size=20, unique=True), st.integers(0, 10**10))
def test_a_pose_lies_between_its_neighbours_or_is_unknown(stamps: list[int], wanted: int) -> None:
    track = PoseTrack(
        [CameraPose(t, np.array([t / 1e9, 0, 0]), Rotation.from_rotvec([0, 0, t / 1e10]).as_quat()) for t in stamps]
    )
    pose = track.at(wanted)
    later, earlier = [t for t in stamps if t >= wanted], [t for t in stamps if t <= wanted]
    known = bool(later and earlier) and min(later) - max(earlier) <= LONGEST_GAP_NS
    assert (pose is not None) == known
    if pose is not None:
        assert pose.position[0] == pytest.approx(wanted / 1e9, abs=1e-6)
        assert Rotation.from_quat(pose.orientation).magnitude() == pytest.approx(wanted / 1e10, abs=1e-6)


def test_tum_files_are_read_exactly_and_others_refused(tmp_path) -> None:
    path = tmp_path / "poses.txt"
    path.write_text("# a comment\n1700000000.123456789 1 2 3 0 0 0 2  # not yet a unit\n\n")
    pose = read_tum(path).at(1700000000123456789)
    assert pose is not None and pose.position.tolist() == [1, 2, 3] and pose.orientation.tolist() == [0, 0, 0, 1]
    for text, words in (
        ("", "has no poses"),
        ("1 2 3", "line 1"),
        ("x 0 0 0 0 0 0 1", "line 1"),
        ("1 0 0 0 0 0 0 0", "line 1"),
        ("1 nan 0 0 0 0 0 1", "line 1"),
        ("inf 0 0 0 0 0 0 1", "line 1"),
    ):
        path.write_text(text)
        with pytest.raises(RecordingError, match=words):
            read_tum(path)


@given(st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=50))
def test_running_means_are_those_of_numpy(values: list[float]) -> None:
    running = Running()
    for value in values:
        running.add(value)
    found = running.as_dict()
    assert found["mean"] == pytest.approx(np.mean(values), rel=1e-5, abs=1e-3)
    assert found["std"] == pytest.approx(np.std(values, ddof=1), rel=1e-5, abs=1e-3)
    assert (found["n"], running.low, running.high) == (len(values), min(values), max(values))


def test_a_series_keeps_a_bounded_number_of_points_over_all_its_time() -> None:
    series = Series()
    for number in range(100_000):
        series.add(float(number), 1.0)
    assert 512 <= len(series.points) <= 1024
    assert series.points[0][0] == 0 and series.points[-1][0] > 99_000
    assert series.as_dict() == {"n": 100_000, "mean": 1.0, "p50": 1.0, "p95": 1.0, "total_s": 100.0}


def test_plots_break_at_pauses_and_escape_names() -> None:
    points = [(0.0, 1.0), (0.1, 2.0), (0.2, 1.5), (9.0, 1.0), (9.1, 1.2)]
    svg = line_plot({"<a & b>": points}, "iou <1>", (0.0, 9.0), (0.0, 1.0))
    assert svg.count('stroke-width="1.6"') == 2
    assert "&lt;a &amp; b&gt;" in svg and "<a & b>" not in svg
    assert line_plot({"none": []}, "iou", (0.0, 1.0)) == "" and bar_plot({}, "ms") == ""
    assert line_plot({"one": [(1.0, 0.0)]}, "iou", (0.0, 0.0)).count("<circle") == 1
    assert "inputs: 1.0 ms (25%)" in bar_plot({"inputs": 1.0, "model": 3.0}, "ms")

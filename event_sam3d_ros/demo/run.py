"""Plays a recording through the real nodes as separate processes, and writes down what they answer."""

from __future__ import annotations

import importlib
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from event_sam3d_ros.demo.overview import chosen_rows, draw_overview
from event_sam3d_ros.demo.processes import ENDING_SIGNALS, DemoError, Parameters, Processes, free_domain_id
from event_sam3d_ros.demo.results import (
    RunResult,
    frame_numbers_of,
    is_of_a_demo,
    mark_incomplete,
    summarise,
    table,
    write_point_clouds,
    write_poses,
    write_summary,
)
from event_sam3d_ros.demo.scene import RecordingScene, read_scene
from event_sam3d_ros.demo.truth import TrueObject, read_truth, score_run
from event_sam3d_ros.errors import ConfigurationError, EventSam3dError, RecordingError
from event_sam3d_ros.evaluation.replay import PAIR_TIMEOUT_S
from event_sam3d_ros.reconstructor import share_folder
from event_sam3d_ros.recordings.bag_messages import IMAGE_TYPE
from event_sam3d_ros.recordings.files import Rosbag2Recording, Topics, open_rosbag2

if TYPE_CHECKING:
    from event_sam3d_ros.nodes.demo_recorder import DemoRecorder

EVENT_IMAGE_NODE, RECONSTRUCTION_NODE, PLAYER_NODE = "event_image_node", "reconstruction_node", "bag_player_node"
_START_TIMEOUT_S = 120.0
_IDLE_S = 1.5
_SPIN_S = 0.1
_FEW_FRAMES = 5
_LONGEST_WAIT_MS = 10_000.0
_NOT_ENDED = "the demo has not come to its end"


@dataclass(frozen=True)
class DemoOptions:
    """``bag``: rosbag2 folder or file; ``out``: folder for the results, earlier ones go; ``rate``: 1 = real time."""

    bag: Path
    out: Path
    rate: float = 1.0


def run_demo(options: DemoOptions, say: Callable[[str], None] = print) -> dict[str, Any]:
    """Runs the demo and returns the summary. DemoError if a node ended or nothing came out, RecordingError for a bad
    bag."""
    recording = open_rosbag2(options.bag)
    _check_topics(recording)
    _check_ros()
    truth = read_truth(options.bag)
    stamps = recording.frame_stamps()
    prepare(options.out)
    environment = {
        "ROS_DOMAIN_ID": str(free_domain_id()),
        "FASTRTPS_DEFAULT_PROFILES_FILE": str(share_folder() / "config" / "fastdds_profile.xml"),
        "PYTHONUNBUFFERED": "1",
    }
    say(f"starting the nodes for {options.bag}: {recording.image_count} frames at rate {options.rate:g}")
    with _end_noted(options.out / "summary.json"), _interruptible() as check:
        with Processes(options.out / "logs", environment) as processes:
            run = _record(recording, options, processes, environment, check)
        check()
        say("the nodes are stopped; writing the results")
        return write_results(options, recording, run, stamps, truth, say, check)


def write_results(
    options: DemoOptions,
    recording: Rosbag2Recording,
    run: RunResult,
    stamps: Sequence[int],
    truth: Mapping[int, TrueObject] | None,
    say: Callable[[str], None],
    check: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Writes all files of a run and returns the summary. ``stamps`` of the recording's RGB frames; ``check`` is called
    between the steps.

    What was recorded goes first: truth and picture need the recording once more, and may fail.
    """
    out = options.out
    write_poses(out / "poses.csv", run)
    write_point_clouds(out / "objects", run, frame_numbers_of([*stamps, *(result.stamp_ns for result in run.results)]))
    summary = summarise(run, {})
    write_summary(out / "summary.json", summary, _NOT_ENDED)
    files = "summary.json, poses.csv, objects/"
    scene: RecordingScene | None = None
    try:
        check()
        scene = read_scene(recording, {result.stamp_ns for result in chosen_rows(run.results)})
        check()
        if truth:
            summary = summarise(run, score_run(run, truth, scene.K, scene.width, scene.height))
        check()
        draw_overview(out / "overview.png", run, scene, truth)
        files = f"overview.png, {files}"
    except EventSam3dError as error:
        say(f"no picture of this run: {error}")
    check()
    write_summary(out / "summary.json", summary)
    say(table(summary))
    if scene is not None:
        _hint(say, summary, scene, options)
    say(f"written to {out}/: {files}")
    return summary


def _record(
    recording: Rosbag2Recording,
    options: DemoOptions,
    processes: Processes,
    environment: dict[str, str],
    check: Callable[[], None],
) -> RunResult:
    os.environ.update(environment)  # this process takes part in the same domain; rclpy reads it when it starts
    from event_sam3d_ros.nodes.demo_recorder import DemoRecorder

    # The nodes wait by the wall clock: a slowed down recording needs more of it. A machine that is too slow for the
    # camera shall show how slow it is, so results are published however late they are.
    patience = max(1.0, 1.0 / options.rate)
    event_image: Parameters = {
        "use_sim_time": True,
        "event_type": recording.types[recording.topics.events],
        "frame_source": frame_source(recording),
        "max_wait_ms": min(100 * patience, _LONGEST_WAIT_MS),
        "buffer_ms": 1000.0 + min(100 * patience, _LONGEST_WAIT_MS),  # the node asks for window and wait at least
    }
    reconstruction: Parameters = {
        "use_sim_time": True,
        "image_type": "compressed" if recording.topics.image.endswith("/compressed") else "raw",
        "depth_type": depth_type(recording),
        "pair_timeout_ms": min(1000 * PAIR_TIMEOUT_S * patience, _LONGEST_WAIT_MS),
        "max_age_ms": 0.0,
        # Threads of one network wait for each other actively, which the processes beside it make long: one is fastest.
        "threads": 1,
    }
    play: Parameters = {"bag": str(options.bag.resolve()), "rate": float(options.rate), "paused": True}
    processes.start_node(EVENT_IMAGE_NODE, event_image)
    processes.start_node(RECONSTRUCTION_NODE, reconstruction)
    with DemoRecorder() as recorder:
        nodes = (EVENT_IMAGE_NODE, RECONSTRUCTION_NODE)
        _wait_for(recorder.nodes_listen, nodes, recorder, processes, check)
        processes.start_node(PLAYER_NODE, play, *_default_names(recording.topics))
        _wait_for(recorder.start_player, (PLAYER_NODE,), recorder, processes, check)
        _watch(recorder, processes, recording, check)
        if not any(result.objects for result in recorder.results):
            raise DemoError(_nothing_came_out(recorder))
        return RunResult(
            frames=recording.image_count,
            duration_s=max((recording.end_ns - recording.start_ns) / 1e9 / options.rate, 1e-3),
            model=_model_name(recorder.model_info or {}),
            results=recorder.results,
            dropped=recorder.counters.get(RECONSTRUCTION_NODE, {}),
        )


def _default_names(topics: Topics) -> list[str]:
    """Arguments by which the player gives the topics that the nodes listen to their default names."""
    image = Topics.image + ("/compressed" if topics.image.endswith("/compressed") else "")
    names = ((topics.events, Topics.events), (topics.image, image), (topics.camera_info, Topics.camera_info))
    return [word for name, default in names for word in ("-r", f"{name}:={default}")]


def frame_source(recording: Rosbag2Recording) -> str:
    """Where event_image_node finds the frames' stamps: in the calibration only if one comes with every frame."""
    if recording.counts[recording.topics.camera_info] >= recording.image_count:
        return "camera_info"
    return "compressed_image" if recording.topics.image.endswith("/compressed") else "image"


def depth_type(recording: Rosbag2Recording) -> str:
    """What reconstruction_node subscribes to as depth."""
    kinds = {IMAGE_TYPE: "image", "sensor_msgs/msg/PointCloud2": "points"}
    return kinds.get(recording.types.get(recording.topics.depth, ""), "none")


def _wait_for(
    ready: Callable[[], bool],
    nodes: Sequence[str],
    recorder: DemoRecorder,
    processes: Processes,
    check: Callable[[], None],
) -> None:
    """Handles messages until ``ready`` is true, for which ``nodes`` are needed."""
    deadline = time.monotonic() + _START_TIMEOUT_S
    while not ready():
        recorder.spin(_SPIN_S)
        check()
        processes.check()
        if time.monotonic() > deadline:
            logs = ", ".join(str(processes.log_file(name)) for name in nodes)
            raise DemoError(f"{' and '.join(nodes)} did not get ready within {_START_TIMEOUT_S:.0f} s; see {logs}")


def _watch(
    recorder: DemoRecorder, processes: Processes, recording: Rosbag2Recording, check: Callable[[], None]
) -> None:
    """Shows progress until the player has ended and no result has come for a while."""
    quiet_since = time.monotonic()
    seen = 0
    with tqdm(
        total=recording.image_count, unit="frame", desc="playing", mininterval=_progress_interval_s()
    ) as progress:
        while processes.exit_code(PLAYER_NODE) is None or time.monotonic() - quiet_since < _IDLE_S:
            recorder.spin(_SPIN_S)
            check()
            processes.check(PLAYER_NODE)
            # Calibrations are counted, of which a piece of a recording may have more than images.
            progress.update(min(recorder.frame_count, recording.image_count) - progress.n)
            if len(recorder.results) > seen or processes.exit_code(PLAYER_NODE) is None:
                quiet_since, seen = time.monotonic(), len(recorder.results)
            if recorder.results:
                last = recorder.results[-1]
                progress.set_postfix(
                    reconstructions=sum(len(result.objects) for result in recorder.results),
                    latency="unknown" if last.latency_ms is None else f"{last.latency_ms:.0f}ms",
                    events=last.event_count,
                    refresh=False,
                )


def _progress_interval_s() -> float:
    """Often on a terminal; a log file gets a line now and then."""
    return 0.2 if sys.stderr.isatty() else 2.0


def _nothing_came_out(recorder: DemoRecorder) -> str:
    counters = {name: count for numbers in recorder.counters.values() for name, count in numbers.items() if count}
    found = ", ".join(f"{name} {count}" for name, count in counters.items()) or "nothing"
    return f"nothing was reconstructed from {recorder.frame_count} frames. The nodes counted: {found}"


def _hint(say: Callable[[str], None], summary: dict[str, Any], scene: RecordingScene, options: DemoOptions) -> None:
    """Where few frames have masks and the model misses some of them: how to see more."""
    used = summary["frames"] - summary["dropped"]
    if used < min(_FEW_FRAMES, len(scene.masked)):
        slower = options.rate * used / len(scene.masked) / 2
        say(
            f"{len(scene.masked)} frames have a mask, {used} of them were reconstructed: the model is slower than this "
            f"camera, and old frames are dropped. --rate {slower:.1g} plays slowly enough for most of them."
        )


def _check_topics(recording: Rosbag2Recording) -> None:
    topics = recording.topics
    needed = {"events": topics.events, "frames": topics.image, "calibration": topics.camera_info, "masks": topics.mask}
    missing = [f"{name} ({topic})" for name, topic in needed.items() if topic not in recording.types]
    if missing:
        present = ", ".join(sorted(recording.types)) or "nothing"
        raise RecordingError(
            f"{recording.path} has no {', no '.join(missing)}; it has {present}",
            reason="missing_topic",
        )


def _check_ros() -> None:
    try:
        importlib.import_module("rclpy")
        importlib.import_module("event_sam3d_ros.msg")
    except ImportError as error:
        raise DemoError(
            f"ROS 2 or the messages of this package are not found ({error}): run '. ./env.sh' after 'make build', "
            "or source the install/setup.bash of the workspace"
        ) from error


def prepare(out: Path) -> None:
    """An output folder without the files of an earlier run.

    ConfigurationError where it holds something else: what stands in it is removed only if a demo has written it.
    """
    marked = is_of_a_demo(out / "summary.json")
    if out.exists() and not marked and not (out.is_dir() and not any(out.iterdir())):
        raise ConfigurationError(
            f"{out} exists and was not made by an earlier demo: give another folder with --out", reason="output_exists"
        )
    out.mkdir(parents=True, exist_ok=True)
    for name in ("objects", "logs"):
        shutil.rmtree(out / name, ignore_errors=True)
    for name in ("poses.csv", "summary.json", "overview.png"):
        (out / name).unlink(missing_ok=True)
    write_summary(out / "summary.json", {}, _NOT_ENDED)


def _model_name(info: dict[str, Any]) -> str:
    return ".".join(str(info[key]) for key in ("name", "tag") if info.get(key)) or "unknown"


@contextmanager
def _end_noted(summary: Path) -> Iterator[None]:
    """What ends the block early stands in the summary."""
    try:
        yield
    except (KeyboardInterrupt, EventSam3dError) as error:
        mark_incomplete(summary, str(error) or "interrupted")
        raise


@contextmanager
def _interruptible() -> Iterator[Callable[[], None]]:
    """SIGTERM and SIGHUP end the block like Ctrl-C does; a signal that is ignored (nohup) stays so.

    Gives a function that raises KeyboardInterrupt if a signal came: where Python was in a destructor or a callback of C
    at that moment, the exception was swallowed, or another one made of it.
    """
    came = False

    def interrupt(number: int, frame: FrameType | None) -> None:
        nonlocal came
        came = True
        raise KeyboardInterrupt

    def check() -> None:
        if came:
            raise KeyboardInterrupt

    before = {number: signal.getsignal(number) for number in ENDING_SIGNALS}
    try:
        for number, handler in before.items():
            if handler is not signal.SIG_IGN:
                signal.signal(number, interrupt)
        yield check
    except Exception:
        check()
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

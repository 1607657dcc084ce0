"""The 2D half of the viewer: playback, pictures, objects, plots, exports."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from html import escape
from pathlib import PurePath

import cv2
import numpy as np
import viser
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from event_sam3d_ros.viewer.exports import as_png, objects_as_ply
from event_sam3d_ros.viewer.frames import Frames, ViewFrame, ViewObject
from event_sam3d_ros.viewer.pictures import Picture, color_of, with_masks
from event_sam3d_ros.viewer.player import Player
from event_sam3d_ros.viewer.scene import LAYERS, SceneView, seen_before

SPEEDS = ("0.1", "0.25", "0.5", "1", "2", "4")
PICTURE_WIDTH = 640  # pixels: wider ones are made smaller
_PLOTS_EVERY_S = 0.5
_NEWS_EVERY_S = 0.2
_RENDER_TIMEOUT_S = 20.0
Doubles = NDArray[np.float64]
_BLACK = np.zeros((3, 4, 3), np.uint8)


class Panel:
    """Controls and numbers. It hands what users want to ``player`` and ``scene``; `show` puts a frame into it."""

    def __init__(self, server: viser.ViserServer, frames: Frames, scene: SceneView, player: Player) -> None:
        self._gui, self._frames, self._scene, self._player = server.gui, frames, scene, player
        self._shown: ViewFrame | None = None
        self._objects: dict[str, viser.GuiCheckboxHandle] = {}
        self._drawn_s, self._drawn_rows = 0.0, -1
        self._told: tuple[object, ...] = ()
        self._told_s = 0.0
        self._gui.configure_theme(control_width="large", show_logo=False, show_share_button=False)
        self._status = self._gui.add_html("")  # not markdown, which a browser would have to compile at each frame
        self._add_playback()
        with self._gui.add_folder("Pictures"):
            self._photo = self._gui.add_image(_BLACK, label="frame and masks")
            self._tencode = self._gui.add_image(_BLACK, label="events (Tencode)")
        self._object_folder = self._gui.add_folder("Objects")
        with self._object_folder:
            self._table = self._gui.add_html("")
        self._add_plots()
        self._add_layers()
        self._add_exports()
        self.tell()

    # Playback

    def _add_playback(self) -> None:
        with self._gui.add_folder("Playback"):
            self._play = self._gui.add_button("Play")
            steps = self._gui.add_button_group("Step", ("back", "forward"))
            self._slider = self._gui.add_slider("Frame", 0, 1, 1, 0)
            speed = self._gui.add_dropdown("Speed", SPEEDS, initial_value="1", visible=not self._frames.live)
            loop = self._gui.add_checkbox("Loop", self._player.loop, visible=not self._frames.live)
        self._play.on_click(lambda _: self._toggle())
        steps.on_click(lambda event: self._player.step(1 if event.target.value == "forward" else -1))

        @self._slider.on_update
        def _(event: viser.GuiEvent) -> None:
            if event.client is not None:  # a person moved it, not the player
                self._player.seek(int(self._slider.value))

        @speed.on_update
        def _(_: viser.GuiEvent) -> None:
            self._player.speed = float(speed.value)

        @loop.on_update
        def _(_: viser.GuiEvent) -> None:
            self._player.loop = loop.value

    def _toggle(self) -> None:
        self._player.play(not self._player.playing)
        self.tell()

    # A frame

    def picture(self, frame: ViewFrame) -> Picture | None:
        """What the camera sees, with the masks of the objects that are shown; the events where there is no frame."""
        if frame.rgb is None:
            return None if frame.event_image is None else fitted(frame.event_image)
        hidden = {item.id for item in frame.objects if item.name in self._scene.hidden and not item.aside}
        tracks = frame.tracks
        if tracks is not None and hidden:
            tracks = np.where(np.isin(tracks, list(hidden)), 0, tracks)
        return fitted(with_masks(frame.rgb, tracks))

    def show(self, index: int, frame: ViewFrame, picture: Picture | None) -> None:
        """Puts a frame into it."""
        self._shown = frame
        self._photo.visible = picture is not None
        if picture is not None:
            self._photo.image = picture
        self._tencode.visible = frame.event_image is not None
        if frame.event_image is not None:
            self._tencode.image = fitted(frame.event_image)
        self._table.content = _table(frame.objects)
        self.tell()
        self._slider.value = index  # type: ignore[misc]  # viser: the setter stands apart
        if not self._player.playing or time.monotonic() - self._drawn_s > _PLOTS_EVERY_S:
            self._draw()

    def add_objects(self, items: Sequence[ViewObject]) -> None:
        """A check box for each object that is new. What is one of several results starts hidden where it says so.
        Boxes of objects that were not seen for long go, and with them that they were hidden."""
        for item in items:
            if item.name in self._objects:
                self._objects[item.name] = self._objects.pop(item.name)  # seen last
                continue
            with self._object_folder:
                box = self._gui.add_checkbox(f"object {item.name}", not item.aside)
            self._objects[item.name] = box
            if item.aside:
                self._scene.hidden.add(item.name)
            box.on_update(partial(self._hide, item.name))
        for name in seen_before(self._objects, items):
            self._objects.pop(name).remove()
            self._scene.hidden.discard(name)

    def _hide(self, name: str, _: viser.GuiEvent) -> None:
        (self._scene.hidden.discard if self._objects[name].value else self._scene.hidden.add)(name)
        self._player.refresh()

    def tell_news(self) -> None:
        """`tell` where something has changed, not too often."""
        if self._news() != self._told and time.monotonic() - self._told_s > _NEWS_EVERY_S:
            self.tell()

    def _news(self) -> tuple[object, ...]:
        frames, player = self._frames, self._player
        return frames.span(), frames.status(), frames.complete(), player.playing, player.index

    def tell(self) -> None:
        """What is shown, and what the user should know."""
        self._told, self._told_s = self._news(), time.monotonic()
        self._play.label = "Pause" if self._player.playing else "Play"
        frame, (first, behind) = self._shown, self._frames.span()
        self._slider.min, self._slider.max = first, max(behind - 1, first + 1)
        lines = [f"<b>{escape(self._frames.title)}</b>"]
        if frame is not None:
            seconds = self._frames.history.seconds(frame.stamp_ns)
            camera = "known" if frame.pose_known else "not known: the world is the camera"
            last = f"{behind - 1}" + ("" if self._frames.complete() else " and more")
            lines.append(f"frame {self._player.index} of {first} to {last}, {seconds:.3f} s; camera's pose {camera}")
        if status := self._frames.status():
            lines.append(f"<b>{escape(status)}</b>")
        self._status.content = f'<div style="padding: 0 0.8em; font-size: 0.85em">{"<br>".join(lines)}</div>'

    # Plots

    def _add_plots(self) -> None:
        with self._gui.add_folder("History"):
            self._quantity = self._gui.add_dropdown("Quantity", ("score",), initial_value="score")
            self._history = self._add_chart(170)
            self._quantity.on_update(lambda _: self._draw())
        with self._gui.add_folder("Latency, ms"):
            self._latency = self._add_chart(150)
            self._untimed = self._gui.add_markdown("*This source has no times.*")

    def _add_chart(self, height: int) -> viser.GuiUplotHandle:
        empty = _plot(np.zeros(1), {}, None)
        return self._gui.add_uplot(empty.data, empty.series, scales=empty.scales, height=height, padding=(10, 24, 0, 0))

    def _draw(self) -> None:
        """Plots of all frames so far, with a mark at the one that is shown."""
        history = self._frames.history
        self._drawn_s = time.monotonic()
        quantities = tuple(history.quantities())
        if quantities and quantities != tuple(self._quantity.options):
            self._quantity.options = quantities
        now_s = None if self._shown is None else history.seconds(self._shown.stamp_ns)
        _plot(*history.objects(self._quantity.value), now_s).put_into(self._history)
        times, stages = history.milliseconds()
        self._latency.visible, self._untimed.visible = bool(stages), not stages
        if stages:
            _plot(times, stages, now_s).put_into(self._latency)
        if history.added != self._drawn_rows or not self._player.playing:
            self._drawn_rows = history.added
            self._scene.show_path(history.camera_path())

    # Layers and exports

    def _add_layers(self) -> None:
        with self._gui.add_folder("Layers", expand_by_default=False):
            for name in LAYERS:
                box = self._gui.add_checkbox(name, True)
                box.on_update(partial(self._switch, name))
            aside = self._gui.add_slider("Truth aside, sizes", 0.0, 3.0, 0.1, self._scene.truth_aside)

        @aside.on_update
        def _(_: viser.GuiEvent) -> None:
            self._scene.truth_aside = aside.value
            self._player.refresh()

    def _switch(self, layer: str, event: viser.GuiEvent) -> None:
        (self._scene.layers.add if event.target.value else self._scene.layers.discard)(layer)
        self._drawn_s, self._drawn_rows = 0.0, -1  # the path is drawn with the plots
        self._player.refresh()

    def _add_exports(self) -> None:
        with self._gui.add_folder("View and export"):
            self._gui.add_button("Look through the camera").on_click(self._look_through)
            self._gui.add_button("Look from beside it").on_click(self._look_from_beside)
            self._gui.add_button("Save picture (PNG)").on_click(self._save_picture)
            self._gui.add_button("Save objects (PLY)").on_click(self._save_objects)

    def _look_through(self, event: viser.GuiEvent) -> None:
        frame = self._shown
        if event.client is None or frame is None:
            return
        x, y, z, w = Rotation.from_matrix(frame.camera_to_world[:3, :3]).as_quat()
        camera = event.client.camera
        with event.client.atomic():
            camera.position, camera.wxyz = frame.camera_to_world[:3, 3], (w, x, y, z)
            picture = frame.rgb if frame.rgb is not None else frame.event_image
            if frame.K is not None and picture is not None:
                camera.fov = 2 * np.arctan(picture.shape[0] / 2 / float(frame.K[1, 1]))

    def _look_from_beside(self, event: viser.GuiEvent) -> None:
        if event.client is not None:
            eye, target, up = self._scene.view()
            camera = event.client.camera
            with event.client.atomic():
                camera.up_direction, camera.position, camera.look_at = up, eye, target

    def _save_picture(self, event: viser.GuiEvent) -> None:
        client = event.client
        if client is None:
            return
        height, width = client.camera.image_height, client.camera.image_width
        picture = client.get_render(height, width, transport_format="jpeg", timeout=_RENDER_TIMEOUT_S)
        client.send_file_download(self._file_name("png"), as_png(picture), save_immediately=True)

    def _save_objects(self, event: viser.GuiEvent) -> None:
        if event.client is None or self._shown is None:
            return
        shown = [item for item in self._shown.objects if item.name not in self._scene.hidden]
        event.client.send_file_download(self._file_name("ply"), objects_as_ply(shown), save_immediately=True)

    def _file_name(self, suffix: str) -> str:
        stem = PurePath(self._frames.title.split(":")[0]).stem or "view"
        return f"{stem}_{self._player.index:06d}.{suffix}"


def fitted(picture: Picture) -> Picture:
    """The picture at no more than 640 pixels width."""
    height, width = picture.shape[:2]
    if width <= PICTURE_WIDTH:
        return picture
    size = PICTURE_WIDTH, max(1, round(height * PICTURE_WIDTH / width))
    return cv2.resize(picture, size, interpolation=cv2.INTER_AREA).astype(np.uint8)


def _table(items: tuple[ViewObject, ...]) -> str:
    """As HTML."""
    rows = [("object", "score", "position, m", "size, m")]
    for item in items:
        place, size = (" ".join(f"{value:.2f}" for value in values) for values in (item.pose[:3, 3], item.size))
        rows.append((item.name, f"{item.score or 0:.2f}", place, size + ("" if item.metric else " (a guess)")))
    cells = ["".join(f"<td>{escape(cell)}</td>" for cell in row) for row in rows]
    body = "".join(f"<tr>{row}</tr>" for row in cells) if items else "<tr><td>no objects in this frame</td></tr>"
    return f'<table style="width: 100%; font-size: 0.85em">{body}</table>'


@dataclass(frozen=True)
class _Plot:
    """Data, series and scales of a chart."""

    data: tuple[Doubles, ...]
    series: tuple[viser.uplot.Series, ...]
    scales: dict[str, viser.uplot.Scale]

    def put_into(self, chart: viser.GuiUplotHandle) -> None:
        """Changes what is different: other series or scales make the browser set up the chart anew."""
        if tuple(chart.series) != self.series:
            chart.series = self.series
        if chart.scales != self.scales:
            chart.scales = self.scales
        chart.data = self.data


def _plot(times: Doubles, lines: dict[str, Doubles], now_s: float | None) -> _Plot:
    """A chart of lines over seconds, with a dot on each of them at the time that is shown."""
    data: list[Doubles] = [times]
    series: list[viser.uplot.Series] = [{"label": "s"}]
    nearest = None if now_s is None or not len(times) else int(np.argmin(np.abs(times - now_s)))
    for number, (name, values) in enumerate(lines.items(), start=1):
        first = name.split()[0]
        color = "#{:02x}{:02x}{:02x}".format(*color_of(int(first) if first.isdecimal() else number))
        data.append(values)
        series.append({"label": name, "stroke": color, "width": 1.5, "points": {"show": False}})
        if nearest is not None:
            mark = np.full(len(times), np.nan)
            mark[nearest] = values[nearest]
            data.append(mark)
            series.append({"label": "now", "stroke": color, "points": {"show": True, "size": 8.0}})
    if len(data) == 1:
        data.append(np.full(len(times), np.nan))
        series.append({"label": "nothing yet"})
    # uPlot takes NaN for a number and would find no range by itself.
    scales: dict[str, viser.uplot.Scale] = {"x": {"time": False}, "y": {"range": _range(data[1:])}}
    return _Plot(tuple(data), tuple(series), scales)


def _range(lines: list[Doubles]) -> tuple[float, float]:
    """Bounds around all finite numbers, on round values so that they change seldom."""
    values = np.concatenate(lines)
    values = values[np.isfinite(values)]
    if not len(values):
        return 0.0, 1.0
    low, high = float(values.min()), float(values.max())
    step = 10.0 ** np.round(np.log10(max(high - low, abs(high) / 10, 1e-6)))
    return float(np.floor(low / step) * step), float((np.floor(high / step) + 1) * step)

"""The 3D half of the viewer. A frame changes what it has to of nodes that stay: nothing is added anew."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from urllib.parse import quote

import numpy as np
import viser
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from event_sam3d_ros.viewer.frames import ViewFrame, ViewObject, evenly
from event_sam3d_ros.viewer.pictures import Picture, event_points

EVENT_FRAMES = 6  # whose events stand one behind the other
EVENT_POINTS = 2_000  # of each, evenly chosen
LAYERS = ("depth points", "camera", "camera path", "events", "reconstructions", "axes", "labels", "ground truth")
OBJECT_POINTS = 4_000  # drawn of an object, evenly chosen
OBJECTS_KEPT = 32  # names in the page; those that were not seen for longest go first
_FRUSTUM, _PATH, _LABEL = (90, 90, 90), (70, 120, 200), 1.25
_WINDOW_LENGTH = 0.3  # of a window in the volume of events, in its widths
_NOTHING = np.zeros((0, 3), np.float32), np.zeros((0, 3), np.uint8)


@dataclass
class _ObjectNodes:
    """``root``: the object's frame, with axes; what else there is stands in it."""

    root: viser.FrameHandle
    points: viser.PointCloudHandle
    label: viser.LabelHandle | None
    size: float = 0.0


class SceneView:
    """Nodes: /camera with frustum, depth points and events; /path; /objects/NAME and /truth/NAME. ``layers``: which
    of `LAYERS` are shown; ``hidden``: names of objects that are not."""

    def __init__(self, server: viser.ViserServer) -> None:
        self._scene = server.scene
        self.layers = set(LAYERS)
        self.hidden: set[str] = set()
        self.truth_aside = 1.2  # of an object's size, to the camera's right
        self._distance = 0.0  # of what is looked at, metres; 0: nothing was shown yet
        self._is_settled = False  # something to look at was shown
        self._objects: dict[str, _ObjectNodes] = {}
        self._truths: dict[str, _ObjectNodes] = {}
        self._camera = self._scene.add_frame("/camera", show_axes=False)
        self._depth = self._scene.add_point_cloud("/camera/depth", *_NOTHING, point_size=0.004)
        self._events = self._scene.add_point_cloud("/camera/events", *_NOTHING, point_size=0.004)
        self._clouds: dict[int, tuple[NDArray[np.float32], NDArray[np.uint8]]] = {}  # events by frame
        self._frustum: viser.CameraFrustumHandle | None = None
        self._path: viser.LineSegmentsHandle | None = None
        self._shown: ViewFrame | None = None

    def show(
        self, index: int, frame: ViewFrame, picture: Picture | None, earlier: Callable[[int], ViewFrame | None]
    ) -> bool:
        """A frame, with the picture that its camera sees. ``earlier(index)``: one of those before it. True if `view`
        has changed with it: at the first frame, and at the first that has something to look at."""
        self._shown = frame
        has_begun = not self._is_settled and (self._distance == 0 or _has_content(frame))
        if has_begun:
            self._is_settled = _has_content(frame)
            self._begin(frame)
        place(self._camera, frame.camera_to_world)
        self._depth.visible = "depth points" in self.layers
        if self._depth.visible:
            self._depth.points, self._depth.colors = frame.scene_points, frame.scene_colors
        self._show_camera(frame, picture)
        self._show_events(index, frame, earlier)
        self._show_objects(frame.objects, self._objects, "/objects", "reconstructions" in self.layers)
        right = frame.camera_to_world[:3, 0] * self.truth_aside
        self._show_objects(frame.truths, self._truths, "/truth", "ground truth" in self.layers, right)
        return has_begun

    def view(self) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
        """From where to look at the latest frame, at what, and what is up there."""
        frame = self._shown or ViewFrame(0)
        pose, target = frame.camera_to_world, _target(frame)
        eye = pose[:3, :3] @ (np.array([0.35, -0.5, -0.3]) * self._distance) + pose[:3, 3]
        events = pose[:3, :3] @ (np.array([-0.5, 0.0, 0.4]) * self._distance) + pose[:3, 3]
        return eye, 0.8 * target + 0.2 * events, up_axis(pose)

    def _begin(self, frame: ViewFrame) -> None:
        """What follows from what is looked at: the size of things and what is up."""
        self._distance = max(float(np.linalg.norm(_target(frame) - frame.camera_to_world[:3, 3])), 0.05)
        self._depth.point_size = self._events.point_size = 0.003 * self._distance
        self._events.position = (-0.5 * self._distance, 0.0, 0.0)
        self._scene.set_up_direction(up_axis(frame.camera_to_world))
        for node in (self._frustum, self._path):
            if node is not None:
                node.remove()
        self._frustum = self._path = None

    def _show_camera(self, frame: ViewFrame, picture: Picture | None) -> None:
        whole = frame.rgb if frame.rgb is not None else frame.event_image  # K is of its pixels, not of the picture's
        if frame.K is not None and whole is not None:
            height, width = whole.shape[:2]
            fov, aspect = float(2 * np.arctan(height / 2 / float(frame.K[1, 1]))), width / height
            if self._frustum is None:
                scale = 0.15 * self._distance
                self._frustum = self._scene.add_camera_frustum(
                    "/camera/frustum", fov, aspect, scale=scale, color=_FRUSTUM, thickness=0.01 * scale
                )
            elif (self._frustum.fov, self._frustum.aspect) != (fov, aspect):
                self._frustum.fov, self._frustum.aspect = fov, aspect
        if self._frustum is not None:
            self._frustum.visible = "camera" in self.layers
            if self._frustum.visible:
                self._frustum.image = picture

    def show_path(self, places: NDArray[np.floating]) -> None:
        """The camera's way (N, 3) in the world."""
        visible = "camera path" in self.layers and len(places) > 1
        if visible:
            ends = np.stack([places[:-1], places[1:]], axis=1).astype(np.float32)
            colors = np.full(ends.shape, _PATH, np.uint8)
            if self._path is None:
                self._path = self._scene.add_line_segments("/path", ends, colors, thickness=0.004 * self._distance)
            else:
                self._path.points, self._path.colors = ends, colors
        if self._path is not None:
            self._path.visible = visible

    def _show_events(self, index: int, frame: ViewFrame, earlier: Callable[[int], ViewFrame | None]) -> None:
        """The event images of the latest frames as points in space and time, beside the camera, the newest in front."""
        self._events.visible = "events" in self.layers and frame.event_image is not None
        if not self._events.visible:
            return
        width = 0.4 * self._distance
        wanted = range(max(0, index - EVENT_FRAMES + 1), index + 1)
        self._clouds = {i: cloud for i, cloud in self._clouds.items() if i in wanted}
        for i in wanted:
            if i not in self._clouds:
                one = frame if i == index else earlier(i)
                image = None if one is None else one.event_image
                self._clouds[i] = _NOTHING if image is None else event_points(image, EVENT_POINTS)
        points = np.concatenate([self._clouds[i][0] + np.array([0, 0, index - i], np.float32) for i in wanted])
        self._events.points = points * np.array([width, width, _WINDOW_LENGTH * width], np.float32)
        self._events.colors = np.concatenate([self._clouds[i][1] for i in wanted])

    def _show_objects(
        self,
        items: tuple[ViewObject, ...],
        nodes: dict[str, _ObjectNodes],
        folder: str,
        visible: bool,
        aside: NDArray[np.float64] | float = 0.0,
    ) -> None:
        for gone in nodes.keys() - {item.name for item in items}:
            nodes[gone].root.visible = False
        for item in items:
            one = nodes.pop(item.name, None) or self._add(item, folder)
            nodes[item.name] = one  # seen last
            one.root.visible = visible and item.name not in self.hidden
            if not one.root.visible:
                continue
            self._update(one, item, aside)
        for name in seen_before(nodes, items):
            nodes.pop(name).root.remove()

    def _add(self, item: ViewObject, folder: str) -> _ObjectNodes:
        path = f"{folder}/{quote(item.name, safe='')}"
        length = 0.5 * float(np.max(item.size))
        root = self._scene.add_frame(path, axes_length=length, axes_radius=0.02 * length, origin_radius=0.04 * length)
        points = self._scene.add_point_cloud(f"{path}/points", *drawn(item), point_shape="circle")
        if item.score is None:
            return _ObjectNodes(root, points, None)
        label = self._scene.add_label(f"{path}/label", "", font_screen_scale=_LABEL, anchor="bottom-center")
        return _ObjectNodes(root, points, label)

    def _update(self, one: _ObjectNodes, item: ViewObject, aside: NDArray[np.float64] | float) -> None:
        pose = item.pose.copy()
        pose[:3, 3] += aside * np.max(item.size)
        place(one.root, pose)
        one.root.show_axes = "axes" in self.layers
        if item.score is not None:  # a true object does not change
            one.points.points, one.points.colors = drawn(item)
        size = float(np.max(item.size))
        if abs(size - one.size) > 0.1 * one.size:
            one.size, one.points.point_size = size, size / 90
        if one.label is not None:
            one.label.visible = "labels" in self.layers
            scale = "" if item.metric else ", scale not known"
            one.label.text = f"{item.name}: {item.score:.2f}{scale}"
            one.label.position = (0.0, 0.0, 0.55 * float(item.size[2]))


def place(node: viser.SceneNodeHandle, pose: NDArray[np.float64]) -> None:
    """Puts a node where a pose (4, 4) says."""
    x, y, z, w = Rotation.from_matrix(pose[:3, :3]).as_quat()
    node.wxyz, node.position = (w, x, y, z), pose[:3, 3]


def seen_before(names: Iterable[str], shown: Sequence[ViewObject]) -> list[str]:
    """Of names in the order in which they were seen last: those for which there is no place any more."""
    names, present = list(names), {item.name for item in shown}
    return [name for name in names[: max(0, len(names) - OBJECTS_KEPT)] if name not in present]


def up_axis(camera_to_world: NDArray[np.float64]) -> NDArray[np.float64]:
    """The axis of the world, or its opposite, that is nearest to the camera's up."""
    up = -camera_to_world[:3, 1]
    axis = np.zeros(3)
    axis[np.argmax(np.abs(up))] = np.sign(up[np.argmax(np.abs(up))])
    return axis


def _has_content(frame: ViewFrame) -> bool:
    return bool(frame.objects or frame.truths or len(frame.scene_points))


def drawn(item: ViewObject) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """Points and colours of an object as they are drawn: at most 4,000."""
    chosen = evenly(len(item.points), OBJECT_POINTS)
    return item.points[chosen], item.colors[chosen]


def _target(frame: ViewFrame) -> NDArray[np.float64]:
    """The middle of the objects, else of what the camera has before it, else a metre before it."""
    places = [item.pose[:3, 3] for item in (*frame.objects, *frame.truths)]
    if places:
        return np.mean(places, axis=0)
    local = np.median(frame.scene_points, axis=0) if len(frame.scene_points) else np.array([0.0, 0.0, 1.0])
    return frame.camera_to_world[:3, :3] @ local + frame.camera_to_world[:3, 3]

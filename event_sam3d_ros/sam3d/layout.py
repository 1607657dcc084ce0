"""Where the network's grid lies in the camera's world: the one place that converts between them.

Chain of frames, all right-handed:

* camera: the optical frame (x right, y down, z forward), metres;
* crop: the camera turned so that z runs through the crop's centre pixel;
* grid: (u, v, w). u and v run over the crop's pixels from -1 to 1, right and down; w is depth along the crop frame's z,
  ``z = reference * (1 + slope * depth_range * w)``, so that a voxel is about as deep as it is wide;
* object: origin at the centre of the object's box, z up, x along the viewing direction (`object_rotation`).

``reference`` (the depth of the object's centre, metres) is the only thing one image can't tell: it comes from depth or
a prior.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.floating]


@dataclass(frozen=True)
class CropFrame:
    """A square crop of a camera image.

    ``K``: (3, 3) intrinsics in pixels; ``center``: (2,) x, y of the crop's centre in pixels (pixel centres at whole
    numbers, as in OpenCV and ROS); ``side``: the crop's side in pixels; ``depth_range``: half the grid's depth in units
    of its half-width.
    """

    K: FloatArray
    center: tuple[float, float]
    side: float
    depth_range: float

    @property
    def rotation(self) -> FloatArray:
        """(3, 3) crop -> camera: the smallest rotation that takes the z axis to the ray of the crop's centre."""
        x, y, z = _unit(self._rays(np.zeros(2)))
        # Rodrigues' formula for the axis z_axis x ray, written out
        return np.array(
            [[1 - x * x / (1 + z), -x * y / (1 + z), x], [-x * y / (1 + z), 1 - y * y / (1 + z), y], [-x, -y, z]]
        )

    @property
    def slope(self) -> float:
        """Tangent of half the angle that the crop spans, mean of both directions."""
        ends = self._crop_rays(np.array([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]]))
        return float(np.linalg.norm(ends[0] - ends[1]) + np.linalg.norm(ends[2] - ends[3])) / 4

    def to_camera(self, uvw: FloatArray, reference: float) -> FloatArray:
        """Grid coordinates (..., 3) -> camera frame (..., 3) metres."""
        z = reference * (1 + self.slope * self.depth_range * uvw[..., 2:])
        return (self._crop_rays(uvw[..., :2]) * z) @ self.rotation.T

    def to_grid(self, points: FloatArray, reference: float) -> FloatArray:
        """Camera frame (..., 3) metres, in front of the camera -> grid coordinates (..., 3)."""
        pixels = points @ self.K.T
        uv = (pixels[..., :2] / pixels[..., 2:] - np.asarray(self.center)) * (2 / self.side)
        z = points @ self.rotation[:, 2]
        w = (z / reference - 1) / (self.slope * self.depth_range)
        return np.concatenate([uv, w[..., None]], axis=-1)

    def reference_of(self, depth: FloatArray, uv: FloatArray, w: FloatArray) -> FloatArray:
        """The reference depth that puts grid points (u, v, w) at the measured ``depth`` (camera z, metres)."""
        rays = self._crop_rays(uv) @ self.rotation.T
        return depth / (rays[..., 2] * (1 + self.slope * self.depth_range * w))

    def _rays(self, uv: FloatArray) -> FloatArray:
        """Rays with camera z = 1 through crop positions uv (..., 2)."""
        pixels = np.asarray(self.center) + uv * (self.side / 2)
        homogeneous = np.concatenate([pixels, np.ones_like(pixels[..., :1])], axis=-1)
        return homogeneous @ np.linalg.inv(self.K).T

    def _crop_rays(self, uv: FloatArray) -> FloatArray:
        """The same rays in the crop frame, scaled to z = 1."""
        rays = self._rays(uv) @ self.rotation
        return rays / rays[..., 2:]


def grid_centers(resolution: int) -> FloatArray:
    """Cell centres (resolution,) of [-1, 1]."""
    return (np.arange(resolution) + 0.5) * (2 / resolution) - 1


def object_rotation(up: FloatArray, ray: FloatArray) -> FloatArray:
    """(3, 3) object -> camera. Columns: x = ``ray`` projected on the plane orthogonal to z; y = z cross x; z = ``up``.

    ``up``, ``ray``: (3,) in the camera frame, any length; ``ray`` points from the camera to the object. One image of an
    unknown object tells no heading of its own, so the camera's is used. Looking straight along ``up``, the image's
    upward direction (0, -1, 0) takes the ray's place.
    """
    z = _unit(np.asarray(up, dtype=np.float64))
    x: FloatArray
    for direction in (np.asarray(ray, dtype=np.float64), np.array([0.0, -1.0, 0.0]), np.array([1.0, 0.0, 0.0])):
        x = _unit(direction) - (_unit(direction) @ z) * z
        if np.linalg.norm(x) > 1e-3:
            break
    x = _unit(x)
    return np.stack([x, np.cross(z, x), z], axis=1)


def _unit(vector: FloatArray) -> FloatArray:
    return vector / np.linalg.norm(vector)

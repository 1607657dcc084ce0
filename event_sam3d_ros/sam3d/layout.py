"""Where the network's grids lie in the camera's world: the one place that converts between them.

All frames are right-handed. Those of both geometry heads:

* camera: the optical frame of ROS and OpenCV (x right, y down, z forward), metres;
* object: origin at the centre of the object's box, z up, metres.

The direct head's grid lies on the crop (`CropFrame`); `object_rotation` then chooses x along the viewing direction.

* crop: the camera turned so that z runs through the crop's centre pixel;
* grid: (u, v, w). u and v run over the crop's pixels from -1 to 1, right and down; w is depth along the crop frame's z,
  ``z = reference * (1 + slope * depth_range * w)``, so that a voxel is about as deep as it is wide.

``reference`` (the depth of the object's centre, metres) is the only thing one image can't tell: it comes from depth or
a prior.

The flow head's grid lies on the object, and its pose latents say where (`decode_poses`, `ObjectPose`):

* cube: the decoder's [-0.5, 0.5]^3, z up, axes of the object frame (`voxel_centers`);
* scene: the pointmap after normalisation, ``(p - scene_shift) / scene_scale``, in which the latents are;
* pointmap: PyTorch3D's camera (x left, y up, z forward; `turn`), in the pointmap's unit, metres if it is of depth.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.floating]

# How the released model scales the first two rows of the rotation, mean and standard deviation over its training set:
# facebookresearch/sam-3d-objects, pipeline/inference_utils.py.
ROTATION_6D_MEAN = np.array(
    [
        -0.06366084883674913,
        0.008438224692279752,
        0.00017084786438302483,
        0.0007126610473540038,
        -0.0030916726538816417,
        0.5166093753457688,
    ]
)
ROTATION_6D_STD = np.array(
    [
        0.6656971967514863,
        0.6787012271867754,
        0.30345010594844524,
        0.4394504420678794,
        0.39817973931717104,
        0.6176286868761914,
    ]
)


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


@dataclass(frozen=True)
class ObjectPose:
    """Object -> camera: ``p_camera = scale * rotation @ p_object + position``.

    ``rotation``: (3, 3); ``position``: (3,) and ``scale`` in the camera frame's unit. The object frame is the decoder's
    cube, whose edge ``scale`` is then; after `centred` it is the metric object frame, and ``scale`` is 1.
    """

    rotation: FloatArray
    position: FloatArray
    scale: float

    def to_camera(self, points: FloatArray) -> FloatArray:
        """Points (..., 3) of the object -> camera frame."""
        return self.scale * (points @ self.rotation.T) + self.position

    def to_object(self, points: FloatArray) -> FloatArray:
        """Points (..., 3) of the camera frame -> object frame."""
        return (points - self.position) @ self.rotation / self.scale

    def turned(self) -> ObjectPose:
        """The same pose in the other camera frame: pointmap -> optical, and optical -> pointmap."""
        return ObjectPose(turn(self.rotation.T).T, turn(self.position), self.scale)

    def centred(self, points: FloatArray) -> tuple[ObjectPose, FloatArray]:
        """The metric object frame and the size (3,) of the box that holds the object's ``points`` (N, 3), given in this
        pose's object frame.
        """
        low, high = points.min(0), points.max(0)
        return ObjectPose(self.rotation, self.to_camera((low + high) / 2), 1.0), (high - low) * self.scale


def turn(points: FloatArray) -> FloatArray:
    """Points (..., 3): pointmap frame (x left, y up) <-> optical frame (x right, y down). Its own inverse."""
    return points * np.array([-1.0, -1.0, 1.0])


def voxel_centers(coords: npt.NDArray[np.integer], resolution: int = 64) -> FloatArray:
    """Voxels x, y, z (..., 3) -> their centres in the decoder's cube."""
    return (coords + 0.5) / resolution - 0.5


def decode_poses(
    latents: Mapping[str, FloatArray], scene_scale: FloatArray, scene_shift: FloatArray
) -> list[ObjectPose]:
    """The flow's pose latents, (B, 1, C) each, -> B poses of the decoder's cube in the pointmap frame.

    ``scene_scale``, ``scene_shift``: (B, 3), with which the pointmap was normalised. The rotation's first two rows come
    from a Gram-Schmidt process (Zhou et al. 2019); the latent ``translation_scale`` has no effect. Convention
    "ScaleShiftInvariant" of facebookresearch/sam-3d-objects. It multiplies row vectors, ``p @ M``: its M, and the
    quaternion that it returns, are the inverse of ``rotation`` here.
    """
    sixd = _rows(latents["6drotation_normalized"]) * ROTATION_6D_STD + ROTATION_6D_MEAN
    scales = (np.exp(_rows(latents["scale"])) * scene_scale).mean(1)
    positions = _rows(latents["translation"]) * scene_scale + scene_shift
    return [
        ObjectPose(_gram_schmidt(rows[:3], rows[3:]), position, float(scale))
        for rows, position, scale in zip(sixd, positions, scales, strict=True)
    ]


def encode_pose(pose: ObjectPose, scene_scale: FloatArray, scene_shift: FloatArray) -> dict[str, FloatArray]:
    """The inverse of `decode_poses` for one pose in the pointmap frame: latents (1, C), what a flow is trained on."""
    return {
        "6drotation_normalized": ((pose.rotation[:2].reshape(1, 6)) - ROTATION_6D_MEAN) / ROTATION_6D_STD,
        "scale": np.log(pose.scale / scene_scale)[None],
        "translation": ((pose.position - scene_shift) / scene_scale)[None],
        "translation_scale": np.zeros((1, 1)),
    }


def _rows(latent: FloatArray) -> FloatArray:
    """(B, 1, C) -> (B, C) float64."""
    return np.asarray(latent, dtype=np.float64)[:, 0]


def _gram_schmidt(first: FloatArray, second: FloatArray) -> FloatArray:
    """(3, 3) rotation whose first row is along ``first`` and whose second lies in the plane of both (3,)."""
    x = _unit(first)
    y = _unit(second - (x @ second) * x)
    return np.stack([x, y, np.cross(x, y)])


def _unit(vector: FloatArray) -> FloatArray:
    return vector / np.linalg.norm(vector)

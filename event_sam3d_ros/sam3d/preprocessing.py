"""What the flow model sees of each object: crop and full frame of image, mask and pointmap, exactly as released.

Names, sizes and rules, odd ones included, are those of facebookresearch/sam-3d-objects (data/dataset/tdfy/
preprocessor.py, img_and_mask_transforms.py, img_processing.py), for B objects of one frame at once. A pointmap is
(3, Hp, Wp) in the pointmap frame of `layout.py`, NaN where unknown; `pointmap.py` makes them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from event_sam3d_ros.errors import InputError

CROP_FACTOR = 1.2


@dataclass(frozen=True)
class ObjectInputs:
    """Inputs of B objects, float32, S x S.

    ``views``, by the names that the condition stage takes, only of what was given: ``image``, ``event_image``:
    (B, 3, S, S) the object's crop, in [0, 1]; ``mask``: (B, 1, S, S) its mask, soft, in [0, 1]; ``pointmap``:
    (B, 3, S, S) its crop of the pointmap, normalised, NaN where unknown; ``rgb_image``, ``rgb_event_image``,
    ``rgb_image_mask``, ``rgb_pointmap``: the same of the full frame, padded to a square. The images of the full frame
    have one row, (1, 3, S, S), for all objects share them.

    ``pointmap_scale``, ``pointmap_shift``: (B, 3) in the pointmap's unit, ``normalised = (p - shift) / scale``; None
    without pointmaps.
    """

    views: dict[str, Tensor]
    pointmap_scale: Tensor | None
    pointmap_shift: Tensor | None


def object_inputs(
    image: Tensor | None,
    masks: Tensor,
    points: Sequence[Tensor] | None = None,
    event_image: Tensor | None = None,
    size: int = 518,
    around: Tensor | None = None,
) -> ObjectInputs:
    """Makes the inputs of B objects, on the device of what is given.

    ``image``, ``event_image``: (H, W, 3) uint8; ``masks``: (B, H, W) uint8 alpha, 255 inside; ``points``: one pointmap
    for each object, which may all be the same tensor; ``size``: S; ``around``: other masks, like ``masks``, that place
    the windows and normalise the pointmaps (training shows a true mask in the window of an estimated one); None:
    ``masks`` themselves. Raises InputError as `crop_box` does.
    """
    alpha = _unit_range(masks)[:, None]
    placing = alpha if around is None else _unit_range(around)[:, None]
    boxes = [crop_box(mask[0]) for mask in placing]
    views = {
        "mask": torch.cat([_nearest(_crop(mask, box)[None], size) for mask, box in zip(alpha, boxes, strict=True)]),
        "rgb_image_mask": _nearest(_padded_to_square(alpha), size),
    }
    for name, frame in (("image", image), ("event_image", event_image)):
        if frame is not None:
            channels = _unit_range(frame).permute(2, 0, 1)
            views[name] = torch.cat([_smooth(_crop(channels, box)[None], size) for box in boxes])
            views[f"rgb_{name}"] = _smooth(_padded_to_square(channels)[None], size)
    if points is None:
        return ObjectInputs(views, None, None)
    crops, fulls, scales, shifts = [], [], [], []
    for pointmap, mask, box in zip(points, placing, boxes, strict=True):
        known = torch.where(pointmap.isfinite().all(dim=0), pointmap, torch.nan)
        scale, shift = scene_moments(known, mask[0])
        normalised = (known - shift[:, None, None]) / scale[:, None, None]
        crops.append(_nearest(_crop(_on_image_grid(normalised, mask.shape[1:]), box, beside=torch.nan)[None], size))
        fulls.append(_nearest(_padded_to_square(normalised)[None], size))
        scales.append(scale)
        shifts.append(shift)
    views |= {"pointmap": torch.cat(crops), "rgb_pointmap": torch.cat(fulls)}
    return ObjectInputs(views, torch.stack(scales), torch.stack(shifts))


def crop_box(mask: Tensor) -> tuple[int, int, int, int]:
    """Left, top, right, bottom (right and bottom excluded) of the window around a mask (H, W), 1.2 times the object.

    It may reach out of the image. Raises InputError with reason ``empty_mask``, or ``object_too_small`` for objects
    under 3 pixels wide or high.
    """
    ys, xs = torch.nonzero(mask, as_tuple=True)
    if len(ys) == 0:
        raise InputError("an object's mask is all zero: there is nothing to reconstruct", reason="empty_mask")
    left, right, top, bottom = (int(v) for v in (xs.min(), xs.max(), ys.min(), ys.max()))
    if right - left < 2 or bottom - top < 2:
        raise InputError(
            f"an object of {right - left + 1}x{bottom - top + 1} pixels is too small; it must be at least 3x3",
            reason="object_too_small",
        )
    half = int(max(right - left, bottom - top) * CROP_FACTOR) // 2
    x, y = (left + right) / 2, (top + bottom) / 2
    # int() cuts towards zero: a window that begins at -0.5 begins at 0, and is a pixel narrower than high
    return int(x - half), int(y - half), int(x + half), int(y + half)


def scene_moments(points: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Scale (3,), the same on all axes, and shift (3,) that normalise a pointmap (3, Hp, Wp) around an object.

    ``mask``: (H, W) in [0, 1], of any size. The shift is the median of the object's points, the scale the median over
    the whole scene of the largest coordinate about it. torch's nanmedian takes the lower of two middle values, numpy's
    their mean. Without a known point in the mask: scale 1, shift 0.
    """
    inside = _nearest(mask[None, None], points.shape[1:])[0, 0] > 0.5
    on_object = points[:, inside]
    if not on_object.isfinite().any():
        return points.new_ones(3), points.new_zeros(3)
    shift = on_object.nanmedian(dim=1).values
    scale = (points - shift[:, None, None]).abs().amax(dim=0).nanmedian()
    return scale.expand(3), shift


def _crop(frame: Tensor, box: tuple[int, int, int, int], beside: float = 0.0) -> Tensor:
    """The window of a frame (C, H, W), made square.

    Outside of the frame everything is 0, the normalised pointmap too: there it says "a point at the object's centre".
    Only what makes a window square, the pixel of `crop_box`, is filled with ``beside``.
    """
    left, top, right, bottom = box
    height, width = frame.shape[1:]
    x0, y0, x1, y1 = max(left, 0), max(top, 0), min(right, width), min(bottom, height)
    window = F.pad(frame[:, y0:y1, x0:x1], (x0 - left, right - x1, y0 - top, bottom - y1))
    return _padded_to_square(window, beside)


def _padded_to_square(frame: Tensor, value: float = 0.0) -> Tensor:
    """(..., H, W) -> (..., M, M), M the larger side; half of what is missing comes before, rounded down."""
    height, width = frame.shape[-2:]
    missing_x, missing_y = max(height - width, 0), max(width - height, 0)
    before_x, before_y = missing_x // 2, missing_y // 2
    return F.pad(frame, (before_x, missing_x - before_x, before_y, missing_y - before_y), value=value)


def _on_image_grid(pointmap: Tensor, shape: Sequence[int]) -> Tensor:
    """A pointmap (3, Hp, Wp) resized to the image's H x W; points that were unknown stay unknown."""
    if pointmap.shape[1:] == tuple(shape):
        return pointmap
    unknown = pointmap.isnan().any(dim=0)
    smooth = _smooth(pointmap.nan_to_num(nan=0.0)[None], shape)[0]
    return torch.where(_nearest(unknown[None, None].float(), shape)[0] > 0.5, torch.nan, smooth)


def _unit_range(image: Tensor) -> Tensor:
    """uint8 -> float32 in [0, 1]; divided in double precision, as numpy does it."""
    return (image.double() / 255).float()


def _smooth(frames: Tensor, size: int | Sequence[int]) -> Tensor:
    return F.interpolate(frames, size=_shape(size), mode="bilinear", align_corners=False, antialias=True)


def _nearest(frames: Tensor, size: int | Sequence[int]) -> Tensor:
    return F.interpolate(frames, size=_shape(size), mode="nearest")


def _shape(size: int | Sequence[int]) -> tuple[int, int]:
    """The two sides, of a square if there is one number."""
    height, width = (size, size) if isinstance(size, int) else size
    return height, width

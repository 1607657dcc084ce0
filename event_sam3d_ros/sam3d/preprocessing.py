"""What the flow model sees of each object: crop and full frame of image, mask and pointmap, exactly as released.

Names, sizes and rules, odd ones included, are those of facebookresearch/sam-3d-objects (data/dataset/tdfy/
preprocessor.py, img_and_mask_transforms.py, img_processing.py), for B objects of one frame at once. A pointmap is
(3, Hp, Wp) in the pointmap frame of `layout.py`, NaN where unknown; `pointmap.py` makes them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from event_sam3d_ros.errors import InputError

CROP_FACTOR = 1.2
"""Side of an object's window in sides of the object, as released."""


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
    crop_factor: float = CROP_FACTOR,
    store: torch.device | str | None = None,
) -> ObjectInputs:
    """Makes the inputs of B objects, on the device of what is given, one object after the other.

    ``image``, ``event_image``: (H, W, 3) uint8; ``masks``: (B, H, W) uint8 alpha, 255 inside; ``points``: one pointmap
    for each object, which may all be the same tensor; ``size``: S; ``around``: other masks, like ``masks``, that place
    the windows and normalise the pointmaps (training shows a true mask in the window of an estimated one); None:
    ``masks`` themselves; ``crop_factor``: of `crop_box`; ``store``: the device that finished inputs are put on, None
    for where they are made. Raises InputError as `crop_box` does.
    """
    placing = masks if around is None else around
    boxes = [crop_box(mask, crop_factor) for mask in placing]

    def joined(made: Iterable[Tensor]) -> Tensor:
        """Rows (C, S, S), each put away before the next one is made."""
        return torch.stack([row.to(store if store is not None else row.device) for row in made])

    views = {
        "mask": joined(
            _unit_range(_nearest(_crop(mask[None], box), size)) for mask, box in zip(masks, boxes, strict=True)
        ),
        "rgb_image_mask": joined(_unit_range(_nearest(_padded_to_square(mask[None]), size)) for mask in masks),
    }
    for name, frame in (("image", image), ("event_image", event_image)):
        if frame is not None:
            channels = _unit_range(frame).permute(2, 0, 1)
            views[name] = joined(_smooth(_crop(channels, box), size) for box in boxes)
            views[f"rgb_{name}"] = joined([_smooth(_padded_to_square(channels), size)])
    if points is None:
        return ObjectInputs(views, None, None)
    maps = [
        [x.to(store if store is not None else x.device) for x in _pointmap_views(pointmap, mask, box, size)]
        for pointmap, mask, box in zip(points, placing, boxes, strict=True)
    ]
    crops, fulls, scales, shifts = (torch.stack(rows) for rows in zip(*maps, strict=True))
    return ObjectInputs(views | {"pointmap": crops, "rgb_pointmap": fulls}, scales, shifts)


def _pointmap_views(
    pointmap: Tensor, mask: Tensor, box: tuple[int, int, int, int], size: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Of one object: the crop and the full frame (3, S, S) of the normalised pointmap, its scale and shift (3,)."""
    known = torch.where(pointmap.isfinite().all(dim=0), pointmap, torch.nan)
    scale, shift = scene_moments(known, _unit_range(mask))
    normalised = (known - shift[:, None, None]) / scale[:, None, None]
    cropped = _crop(_on_image_grid(normalised, mask.shape), box, beside=torch.nan)
    return _nearest(cropped, size), _nearest(_padded_to_square(normalised), size), scale, shift


def crop_box(mask: Tensor, crop_factor: float = CROP_FACTOR) -> tuple[int, int, int, int]:
    """Left, top, right, bottom (right and bottom excluded) of the window around a mask (H, W), ``crop_factor`` times
    the object.

    It may reach out of the image. Raises InputError with reason ``empty_mask``, or ``object_too_small`` for objects
    under 3 pixels wide or high.
    """
    ys, xs = (torch.nonzero(mask.any(dim=across))[:, 0].tolist() for across in (1, 0))
    if not ys:
        raise InputError("an object's mask is all zero: there is nothing to reconstruct", reason="empty_mask")
    left, right, top, bottom = xs[0], xs[-1], ys[0], ys[-1]
    if right - left < 2 or bottom - top < 2:
        raise InputError(
            f"an object of {right - left + 1}x{bottom - top + 1} pixels is too small; it must be at least 3x3",
            reason="object_too_small",
        )
    half = int(max(right - left, bottom - top) * crop_factor) // 2
    x, y = (left + right) / 2, (top + bottom) / 2
    # int() cuts towards zero: a window that begins at -0.5 begins at 0, and is a pixel narrower than high
    return int(x - half), int(y - half), int(x + half), int(y + half)


def scene_moments(points: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Scale (3,), the same on all axes, and shift (3,) that normalise a pointmap (3, Hp, Wp) around an object.

    ``mask``: (H, W) in [0, 1], of any size. The shift is the median of the object's points, the scale the median over
    the whole scene of the largest coordinate about it. torch's nanmedian takes the lower of two middle values, numpy's
    their mean. Without a known point in the mask: scale 1, shift 0.
    """
    inside = _nearest(mask[None], points.shape[1:])[0] > 0.5
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
    smooth = _smooth(pointmap.nan_to_num(nan=0.0), shape)
    return torch.where(_nearest(unknown[None].float(), shape) > 0.5, torch.nan, smooth)


def _unit_range(image: Tensor) -> Tensor:
    """uint8 -> float32 in [0, 1], the quotient rounded once; numpy's, rounded to double first, is the same for bytes.

    The divisor is a tensor because torch multiplies with the inverse of a number on CUDA.
    """
    return image.float() / torch.full((), 255.0, device=image.device)


def _smooth(frame: Tensor, size: int | Sequence[int]) -> Tensor:
    return F.interpolate(frame[None], size=_shape(size), mode="bilinear", align_corners=False, antialias=True)[0]


def _nearest(frame: Tensor, size: int | Sequence[int]) -> Tensor:
    return F.interpolate(frame[None], size=_shape(size), mode="nearest")[0]


def _shape(size: int | Sequence[int]) -> tuple[int, int]:
    """The two sides, of a square if there is one number."""
    height, width = (size, size) if isinstance(size, int) else size
    return height, width

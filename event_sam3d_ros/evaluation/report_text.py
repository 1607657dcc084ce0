"""What a report says in words: the numbers' meaning, what they are elsewhere, and how to read the pictures."""

from __future__ import annotations

# Of each number what it means, its range or unit, and which way is better.
MEANING = {
    "score": ("the IoU with the true shape that the model itself expects", "0 to 1", "higher"),
    "iou": ("overlap of the solid with the true one after both were scaled to one box and aligned", "0 to 1", "higher"),
    "viou_surface": ("overlap of the two surfaces on a grid of 64 cells a side, aligned", "0 to 1", "higher"),
    "chamfer": ("mean distance between the aligned surfaces, in halves of the object's length", "half lengths",
                "lower"),
    "f1@0.01": ("share of surface points within 0.01 halves of the object's length of the other surface", "0 to 1",
                "higher"),
    "f1@0.05": ("share of surface points within 0.05 halves of the object's length of the other surface", "0 to 1",
                "higher"),
    "iou_camera": ("overlap with the true solid as the camera sees it: pose and shape count, scale is free", "0 to 1",
                   "higher"),
    "mask_iou": ("overlap of the result's silhouette with the true one", "0 to 1", "higher"),
    "up_error_deg": ("angle between the result's and the true vertical axis", "degrees", "lower"),
    "add_s": ("mean distance between the surfaces in the camera's frame, in diameters of the true object; needs depth",
              "diameters", "lower"),
    "add_s@0.1": ("share of results whose add_s is below 0.1; needs depth", "0 to 1", "higher"),
    "iou3d_box": ("overlap of the oriented boxes in the camera's frame; needs depth", "0 to 1", "higher"),
    "input_mask_iou": ("overlap of the result's silhouette with the mask that was given", "0 to 1", "higher"),
    "shape_agreement": ("overlap of the shape with that of the frame before, in the object's own frame", "0 to 1",
                        "higher"),
    "edge_contrast": ("events, moved to one moment, on the outline of the result's silhouette against those beside it",
                      "-1 to 1", "higher"),
    "world_step_m": ("how far the object's centre moved in the world since the frame before; needs depth and camera "
                     "poses, and means an error where the object stands still", "metres", "lower"),
    "world_step_deg": ("the same for its vertical axis", "degrees", "lower"),
}  # fmt: skip

# Mean shape and inflated silhouette (no model; both know the true mask), and nano with the sharp frame and the true
# mask, or fused with depth where a metric needs it: weights/MODEL_CARD.md, 200 held-out objects, hard tier, of
# `event-sam3d evaluate --suite synthetic --objects 200`.
REFERENCE = {
    "iou": ("0.498", "0.631", "0.631"),
    "iou_camera": ("0.415", "0.578", "0.634"),
    "viou_surface": ("0.027", "0.049", "0.044"),
    "chamfer": ("0.133", "0.098", "0.102"),
    "f1@0.01": ("0.010", "0.018", "0.016"),
    "f1@0.05": ("0.238", "0.368", "0.351"),
    "mask_iou": ("0.688", "0.958", "0.919"),
    "up_error_deg": ("22.3", "22.3", "17.5"),
    "add_s": ("-", "-", "0.051"),
    "add_s@0.1": ("-", "-", "0.983"),
    "iou3d_box": ("-", "-", "0.633"),
}

_MEAN, _INFLATED, _NANO = (f"{float(value):.2f}" for value in REFERENCE["iou_camera"])
_MASK_MEAN, _, _MASK_NANO = (f"{float(value):.2f}" for value in REFERENCE["mask_iou"])
MAIN = {
    "iou_camera": (
        "<p>The number to look at first is <b>iou_camera</b>, the overlap of the result with the true solid as "
        f"the camera sees it: 1 is perfect, 0 is no overlap. On 200 objects that no training saw, {_MEAN} is what the "
        f"mean shape gives and {_INFLATED} what the true silhouette gives when it is inflated, both without any model; "
        f"the model nano reaches {_NANO} there with a sharp frame and the true mask. So, as far as the objects here "
        f"are like those, a result below {_MEAN} is worse than the mean shape, and only above {_INFLATED} a model "
        "knows more of the object than its outline.</p>"
    ),
    "input_mask_iou": (
        "<p>The number to look at first is <b>input_mask_iou</b>, the overlap of the result's outline with the "
        "mask that was given: 1 is the same outline, 0 none in common. Against the true outlines of 200 objects "
        f"that no training saw, {_MASK_MEAN} is what the mean shape gives without any model, and {_MASK_NANO} what the "
        "model nano reaches with a sharp frame. A low value says that a result is wrong; a high one says nothing of "
        "its depth and of its back.</p>"
    ),
}

PICTURES = (
    "Left to right: the frame; the events of its window; then for each model and mode the result over the frame "
    "and from the side. Yellow: the outline of the mask that was given. Orange: the result. Purple: the truth, "
    "where there is one. In the events' picture each pixel shows its newest event: red where it became brighter, "
    "blue where it became darker, with the more green the older the event is; black saw none. From the side: the "
    "result's points, each object turned by 65 degrees about the vertical through its own centre, so that its "
    "depth, which the camera does not see, can be judged; the truth is drawn at the result's size."
)

"""Draws docs/images/worlds.jpg, a case of each world: ``python scripts/draw_worlds.py docs/images/worlds.jpg``."""

from __future__ import annotations

import sys

import cv2
import numpy as np

from event_sam3d_ros.synthetic.options import WorldOptions
from event_sam3d_ros.synthetic.world import make_case

OBJECT, MOTION, SIDE = 1_000_004, 3, 130
GAP, HEAD, LEFT = 6, 26, 166
COLUMNS = ("sharp, true mask", "exposed for 30 ms", "events of 50 ms", "depth with holes")
ROWS = {
    "swing": WorldOptions(),
    "circle": WorldOptions(motion="circle"),
    "camera": WorldOptions(motion="camera"),
    "an occluder": WorldOptions(occluded=1.0),
    "cutoff 30 Hz, hot pixels": WorldOptions(cutoff_hz=30.0, hot_pixels=0.003),
}


def tiles(options: WorldOptions) -> list[np.ndarray]:
    case = make_case(OBJECT, MOTION, "hard", SIDE, SIDE, options=options)
    sharp = case.sharp.copy()
    outlines, _ = cv2.findContours(case.mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(sharp, outlines, -1, (255, 255, 255), 1)
    shown = np.clip(case.depth / (2.5 * case.position[2]), 0, 1)
    depth = cv2.applyColorMap((255 * shown).astype(np.uint8), cv2.COLORMAP_VIRIDIS)[..., ::-1].copy()
    depth[case.depth == 0] = 0
    return [sharp, case.blurry, case.event_image, depth]


def main() -> None:
    size = HEAD + len(ROWS) * (SIDE + GAP), LEFT + len(COLUMNS) * (SIDE + GAP), 3
    page = np.full(size, 255, np.uint8)
    for column, title in enumerate(COLUMNS):
        text(page, title, (LEFT + column * (SIDE + GAP), 17))
    for row, (name, options) in enumerate(ROWS.items()):
        top = HEAD + row * (SIDE + GAP)
        text(page, name, (8, top + SIDE // 2))
        for column, tile in enumerate(tiles(options)):
            left = LEFT + column * (SIDE + GAP)
            page[top : top + SIDE, left : left + SIDE] = tile
    cv2.imwrite(sys.argv[1], page[..., ::-1])


def text(page: np.ndarray, words: str, place: tuple[int, int]) -> None:
    cv2.putText(page, words, place, cv2.FONT_HERSHEY_SIMPLEX, 0.4, (30, 33, 38), 1, cv2.LINE_AA)


if __name__ == "__main__":
    main()

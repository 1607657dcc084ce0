"""Draws how the shipped model was trained: ``python scripts/draw_training.py docs/images/training.png``.

From ``training/nano_curves.jsonl``: the running means that the stages showed, a line per 20 steps of 32 samples.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import cv2
import numpy as np

CURVES = Path(__file__).parent.parent / "training" / "nano_curves.jsonl"
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 960, 380, 60, 130, 40, 46
BATCH = 32
LOW, HIGH = 0.3, 0.65  # of the IoU that is shown
LINES = {  # RGB
    "iou": ("one input", (95, 99, 104)),
    "sharp_iou": ("sharp", (26, 115, 232)),
    "fused_iou": ("fused", (232, 113, 10)),
    "blurry_iou": ("blurry", (24, 128, 56)),
    "events_iou": ("events", (161, 66, 244)),
}


def main() -> None:
    rows = [json.loads(line) for line in CURVES.read_text(encoding="utf-8").splitlines()]
    stages = list(dict.fromkeys(row["stage"] for row in rows))
    lengths = [max(row["step"] for row in rows if row["stage"] == stage) for stage in stages]
    starts = dict(zip(stages, np.cumsum([0, *lengths[:-1]]).tolist(), strict=True))
    page = np.full((HEIGHT, WIDTH, 3), 255, np.uint8)

    def place(step: float, iou: float) -> tuple[int, int]:
        x = LEFT + step / sum(lengths) * (WIDTH - LEFT - RIGHT)
        return round(x), round(TOP + (HIGH - iou) / (HIGH - LOW) * (HEIGHT - TOP - BOTTOM))

    for iou in np.arange(LOW, HIGH + 1e-9, 0.05):
        cv2.line(page, place(0, iou), place(sum(lengths), iou), (225, 225, 225), 1)
        text(page, f"{iou:.2f}", (12, place(0, iou)[1] + 5))
    for stage, start in starts.items():
        cv2.line(page, place(start, LOW), place(start, HIGH), (150, 150, 150), 1)
        if stage != "distill":  # too narrow for its name; has no IoU
            text(page, stage.removeprefix("finish, "), (place(start, HIGH)[0] + 3, TOP - 8))
    for name, (label, color) in LINES.items():
        for stage, start in starts.items():
            points = [place(start + r["step"], r[name]) for r in rows if r["stage"] == stage and r.get(name, 0) >= LOW]
            if points:
                cv2.polylines(page, [np.array(points)], False, color, 2, cv2.LINE_AA)
        number = list(LINES).index(name)
        text(page, label, (WIDTH - RIGHT + 12, TOP + 20 + 22 * number), color)
    text(page, f"samples (thousands), all stages: {sum(lengths) * BATCH / 1000:.0f} in all", (LEFT, HEIGHT - 14))
    text(page, "IoU in the crop's grid, of training batches", (LEFT, 16))
    cv2.imwrite(sys.argv[1], page[..., ::-1])


def text(page: np.ndarray, words: str, at: tuple[int, int], color: tuple[int, int, int] = (60, 60, 60)) -> None:
    cv2.putText(page, words, at, cv2.FONT_HERSHEY_SIMPLEX, 0.45, color, 1, cv2.LINE_AA)


if __name__ == "__main__":
    main()

"""Images made of events.

Tencode (Huang et al., "EventPoint", arXiv 2109.00210; also Depth AnyEvent, arXiv 2509.15224) shows a window of events
as a colour image: red or blue for the polarity of the pixel's newest event, green for its age.
"""

from __future__ import annotations

from operator import index

import numpy as np
from numba import njit
from numpy.typing import NDArray

from event_sam3d_ros.errors import InputError
from event_sam3d_ros.events.events import Events


def tencode(events: Events, t0_us: int, t1_us: int, width: int, height: int) -> NDArray[np.uint8]:
    """Tencode image of the half-open window [t0_us, t1_us), uint8 [height, width, 3] in the order red, green, blue.

    A pixel shows its newest event; of two with the same time the later in the stream. Events may come in any order of
    time. With v = 1 - (t - t0) / (t1 - t0), a positive event gives (255, rint(255 v), 0), a negative one
    (0, rint(255 v), 255) with halves rounded to even; pixels without events stay black. Events outside the window or
    the image are ignored.

    Raises InputError for a window that is empty or runs backwards (``bad_window``) and for an image without pixels
    (``bad_geometry``).
    """
    t0, t1 = index(t0_us), index(t1_us)
    if t1 <= t0:
        raise InputError(f"event window [{t0}, {t1}) us has no duration: give t0 < t1", reason="bad_window")
    if width < 1 or height < 1:
        raise InputError(f"event image of {width}x{height} has no pixels: give its size", reason="bad_geometry")
    return _tencode(events.t, events.x, events.y, events.p, t0, t1, index(width), index(height))


@njit(cache=True, nogil=True)
def _tencode(t, x, y, p, t0, t1, width, height):  # type: ignore[no-untyped-def]
    # Time and polarity of a pixel's newest event share one number, so that no pixel can mix two events.
    newest = np.full((height, width), -1, np.int64)
    for i in range(t.size):
        if t0 <= t[i] < t1 and x[i] < width and y[i] < height:
            elapsed = t[i] - t0
            if elapsed >= newest[y[i], x[i]] >> 1:
                newest[y[i], x[i]] = elapsed << 1 | (p[i] != 0)
    image = np.zeros((height, width, 3), np.uint8)
    span = t1 - t0
    for row in range(height):
        for column in range(width):
            key = newest[row, column]
            if key >= 0:
                # One rounding only, of an exact quotient: halves are exact for every span below 2**44 us.
                image[row, column, 1] = np.uint8(np.rint(255.0 * (span - (key >> 1)) / span))
                image[row, column, 0 if key & 1 else 2] = 255
    return image

"""An event camera's pixels: every crossing of a contrast threshold of the log intensity is an event.

Follows ESIM (Rebecq et al., "ESIM: an Open Event Camera Simulator", CoRL 2018): intensity is linear in log between two
images, so that crossings get their own times; threshold mismatch, refractory period, leak and shot noise, and the
photoreceptor's bandwidth follow v2e (Hu et al., "v2e: From Video Frames to Realistic DVS Events", CVPRW 2021).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from event_sam3d_ros.errors import InputError
from event_sam3d_ros.events.events import Events, concatenate


@dataclass(frozen=True)
class EventCameraParameters:
    """Contrast thresholds in natural-log units, times in microseconds, rates in hertz per pixel.

    cutoff_hz: corner frequency of the photoreceptors' low pass in full light, 0 = none. hot_pixel_share of the pixels
    fire at hot_pixel_rate_hz, bright events alone.
    """

    threshold_on: float = 0.22
    threshold_off: float = 0.22
    threshold_sigma: float = 0.03
    refractory_us: float = 300.0
    leak_rate_hz: float = 0.05
    shot_noise_rate_hz: float = 0.1
    cutoff_hz: float = 0.0
    hot_pixel_share: float = 0.0
    hot_pixel_rate_hz: float = 100.0


LOG_OFFSET = 0.02
"""Added to linear intensity before the logarithm: the photoreceptor's dark current."""

# v2e: a photoreceptor in the dark has 20/275 of its bandwidth in full light, and gains linearly with intensity.
_DARK_BANDWIDTH = 20.0 / 275.0


def log_intensity(linear_rgb: np.ndarray) -> np.ndarray:
    """log(luminance + LOG_OFFSET) of linear-light colours (..., 3), Rec. 709 weights, float32."""
    return np.log(linear_rgb @ np.array([0.2126, 0.7152, 0.0722], np.float32) + np.float32(LOG_OFFSET))


class EventSimulator:
    """Turns a stream of log-intensity images into events; the state between images is kept, so it runs endlessly."""

    def __init__(self, height: int, width: int, parameters: EventCameraParameters, rng: np.random.Generator):
        self._shape = (height, width)
        self._parameters = parameters
        self._rng = rng
        pixels, sigma = height * width, parameters.threshold_sigma
        mismatch = rng.standard_normal((2, pixels), dtype=np.float32) * np.float32(sigma)
        self._on = np.maximum(parameters.threshold_on + mismatch[0], np.float32(0.05))
        self._off = np.maximum(parameters.threshold_off + mismatch[1], np.float32(0.05))
        self._hot = np.zeros(0, np.int64)
        if parameters.hot_pixel_share > 0:
            self._hot = np.flatnonzero(rng.random(pixels) < parameters.hot_pixel_share)
        self._light: np.ndarray | None = None  # the log image before the photoreceptors' low pass
        self._last: np.ndarray | None = None
        self._last_t = 0
        self._reference = np.zeros(pixels, np.float32)
        self._last_event = np.full(pixels, -np.inf)

    def step(self, log_image: np.ndarray, t_us: int) -> Events:
        """Events of [previous time, t_us), sorted by time; none for the first image.

        log_image: (H, W) natural log of intensity. Raises InputError for times that do not rise
        from call to call (`backward_time`) and for images of another size (`size_mismatch`).
        """
        image = np.asarray(log_image, np.float32).reshape(-1)
        if image.size != self._reference.size:
            raise InputError(
                f"log image of {log_image.shape}, but the simulator was made for {self._shape}", reason="size_mismatch"
            )
        if self._last is None:
            # Each pixel is somewhere between its two thresholds, as after a long time of looking at the scene.
            phase = self._rng.random(image.size, dtype=np.float32)
            self._reference = image + self._off - phase * (self._on + self._off)
            self._light, self._last, self._last_t = image, image, t_us
            return Events.empty()
        if t_us <= self._last_t:
            raise InputError(
                f"image at {t_us} us after one at {self._last_t} us: give images in order of time",
                reason="backward_time",
            )
        span = t_us - self._last_t
        self._light, image = image, self._low_passed(image, span)
        self._reference -= self._on * np.float32(self._parameters.leak_rate_hz * span * 1e-6)
        parts = [*self._crossings(image, span), self._shot_noise(span)]
        if len(self._hot):
            parts.append(self._hot_pixels(span))
        t, pixel, polarity = (np.concatenate(column) for column in zip(*parts, strict=True))
        t = np.minimum(np.floor(t).astype(np.int64), span - 1) + self._last_t
        order = np.argsort(t, kind="stable")
        row, column = np.divmod(pixel[order], self._shape[1])
        self._last, self._last_t = image, t_us
        return Events(t[order], column.astype(np.uint16), row.astype(np.uint16), polarity[order].astype(np.uint8))

    def run(self, log_images: np.ndarray, times_us: np.ndarray) -> Events:
        """`step` over images (N, H, W) at times (N,)."""
        return concatenate([self.step(image, int(t)) for image, t in zip(log_images, times_us, strict=True)])

    def _low_passed(self, light: np.ndarray, span: int) -> np.ndarray:
        """What the photoreceptors answer `span` us later, where the log image has come linearly to `light`.

        Exact for a first-order low pass whose time constant, which depends on the intensity, is constant meanwhile: the
        answer does not depend on the length of the steps, as v2e's does.
        """
        if self._parameters.cutoff_hz <= 0:
            return light
        assert self._light is not None and self._last is not None
        intensity = np.exp(0.5 * (light + self._light)) - np.float32(LOG_OFFSET)
        bandwidth = _DARK_BANDWIDTH + (1 - _DARK_BANDWIDTH) * np.clip(intensity, 0, 1)
        steps = (2e-6 * np.pi * self._parameters.cutoff_hz * span) * bandwidth  # time constants that have passed
        lag = (light - self._light) / steps  # of the answer behind a ramp of this slope
        return (light - lag + (self._last - self._light + lag) * np.exp(-steps)).astype(np.float32)

    def _crossings(self, image: np.ndarray, span: int) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Time since the last image, flat pixel and polarity of threshold crossings; one entry per repetition."""
        assert self._last is not None
        difference = image - self._reference
        pixel = np.flatnonzero((difference >= self._on) | (difference <= -self._off))
        difference, before, after = difference[pixel], self._last[pixel], image[pixel]
        rising = difference > 0
        step = np.where(rising, self._on[pixel], -self._off[pixel])
        repeats = (difference / step).astype(np.int64)
        change = after - before
        change = np.where(change == 0, step, change)
        parts = []
        for k in range(1, int(repeats.max(initial=0)) + 1):
            due = np.flatnonzero(repeats >= k)
            where = pixel[due]
            level = self._reference[where] + k * step[due]
            t = np.clip((level - before[due]) / change[due], 0, 1).astype(np.float64) * span
            ready = t + self._last_t - self._last_event[where] >= self._parameters.refractory_us
            where, t = where[ready], t[ready]
            self._last_event[where] = t + self._last_t
            parts.append((t, where, rising[due][ready]))
        self._reference[pixel] += repeats.astype(np.float32) * step
        return parts

    def _shot_noise(self, span: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Random events, which leave the pixels' references as they are."""
        rate = self._parameters.shot_noise_rate_hz * self._reference.size * span * 1e-6
        count = int(self._rng.poisson(rate))
        pixel = self._rng.integers(0, self._reference.size, count)
        return self._rng.random(count) * span, pixel, self._rng.random(count) < 0.5

    def _hot_pixels(self, span: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        count = int(self._rng.poisson(self._parameters.hot_pixel_rate_hz * len(self._hot) * span * 1e-6))
        pixel = self._rng.choice(self._hot, count)
        return self._rng.random(count) * span, pixel, np.ones(count, dtype=bool)

"""The package's errors. Every message says what was wrong, where, and what to do about it."""

_EXCERPT = 40


class EventSam3dError(Exception):
    """Base of all errors raised on purpose by this package.

    ``reason`` is a short snake_case token, stable over versions: nodes count errors by it in diagnostics.
    """

    def __init__(self, message: str, *, reason: str = "error") -> None:
        super().__init__(message)
        self.reason = reason


class InputError(EventSam3dError):
    """An image, mask, event image, depth or other argument that cannot be used."""


class DecodeError(EventSam3dError):
    """An event packet or message whose bytes cannot be understood."""


class CalibrationError(EventSam3dError):
    """A camera calibration that is missing, empty or does not fit the image."""


class RecordingError(EventSam3dError):
    """A recording that cannot be opened, read or written."""


class RecordingWarning(UserWarning):
    """A recording that can be read, but not all of it or not as it should be."""


class CheckpointError(EventSam3dError):
    """A model file that is missing, damaged, or made for another network."""


class ConfigurationError(EventSam3dError):
    """A configuration or parameter with an unknown name or a value out of range."""


def excerpt(text: str) -> str:
    """Text from outside as it may stand in a sentence: 40 characters of it, on one line."""
    shown = text if len(text) <= _EXCERPT else f"{text[:_EXCERPT]}..."
    return shown if shown.isprintable() else repr(shown)[1:-1]

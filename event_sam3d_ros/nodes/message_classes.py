"""Message classes by the names of their types."""

from __future__ import annotations

import importlib
from typing import Any

from event_sam3d_ros.errors import ConfigurationError


def message_class(kind: str) -> Any:
    """``package/msg/Name`` -> its class; ConfigurationError ``missing_message_package`` where it is not installed."""
    package, _, name = kind.split("/")
    try:
        return getattr(importlib.import_module(f"{package}.msg"), name)
    except (ImportError, AttributeError) as error:
        raise ConfigurationError(
            f"{kind} needs the message package {package}, which is not installed here or is too old ({error}): "
            f"install ros-$ROS_DISTRO-{package.replace('_', '-')} or build it beside this package",
            reason="missing_message_package",
        ) from error

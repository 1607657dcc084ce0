"""Subscriptions that find out how their publishers send, and say why nothing arrives."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from rclpy.event_handler import SubscriptionEventCallbacks
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from rclpy.topic_endpoint_info import TopicEndpointInfo

from event_sam3d_ros.errors import EventSam3dError
from event_sam3d_ros.nodes.health import Health

_DRAIN_S = 0.02
_UNKNOWN_NAME = "_NODE_NAME_UNKNOWN_"  # rmw's


def name_of(endpoint: TopicEndpointInfo) -> str:
    """The node of a publisher or subscriber: discovery learns it later than the endpoint itself."""
    return "a node" if endpoint.node_name == _UNKNOWN_NAME else endpoint.node_name


class Input:
    """One subscription of a node.

    reliability  auto, reliable or best_effort. auto: reliable if all publishers are, else best effort; ``refresh``,
                 called about twice a second, makes the subscription anew where that changed.
    needed       whether silence on it is worth a warning; otherwise only while somebody publishes
    raw          hand serialized bytes to the callback, without filling a message
    latched      receive what was published before, as of /tf_static; nothing has to follow, so silence is no warning
    drain        take everything that waits at once, for 20 ms at most, so that timers get their turn under any load:
                 rclpy's executor takes one message for each round of waiting, which costs more than to decode a packet

    Whatever the callback raises is counted and logged, so that bad input never ends the node.
    """

    def __init__(
        self,
        node: Node,
        health: Health,
        source: str,
        message_type: type,
        topic: str,
        callback: Callable[[Any], None],
        *,
        reliability: str = "auto",
        depth: int = 5,
        needed: bool = True,
        raw: bool = False,
        latched: bool = False,
        drain: bool = False,
    ) -> None:
        self.source = source
        self._node, self._health, self._callback = node, health, callback
        self._type, self._topic, self._depth, self._raw = message_type, topic, depth, raw
        self._auto, self._needed, self._drain = reliability == "auto", needed, drain
        self._reliable = reliability != "best_effort"
        self._durability = DurabilityPolicy.TRANSIENT_LOCAL if latched else DurabilityPolicy.VOLATILE
        self._since = time.monotonic()
        self._subscription = self._subscribe()
        self.refresh()

    def _subscribe(self) -> Any:
        reliability = ReliabilityPolicy.RELIABLE if self._reliable else ReliabilityPolicy.BEST_EFFORT
        # This handler takes the place of rclpy's, which would log the incompatible QoS that refresh() is about to mend.
        events = SubscriptionEventCallbacks(incompatible_qos=lambda _: None) if self._auto else None
        qos = QoSProfile(depth=self._depth, reliability=reliability, durability=self._durability)
        return self._node.create_subscription(
            self._type, self._topic, self._received, qos, event_callbacks=events, raw=self._raw
        )

    def _received(self, message: Any) -> None:
        self._handle(message)
        subscription = self._subscription
        end = time.monotonic() + _DRAIN_S
        while self._drain and time.monotonic() < end:
            with subscription.handle:
                taken = subscription.handle.take_message(subscription.msg_type, subscription.raw)
            if taken is None:
                break
            self._handle(taken[0])

    def _handle(self, message: Any) -> None:
        self._health.tick(self.source)
        try:
            self._callback(message)
        except EventSam3dError as error:
            self._health.report(error.reason, f"{self.topic}: {error}")
        except Exception as error:  # whatever it was, one message must not end the node
            self._health.unexpected(self.topic, error)

    @property
    def topic(self) -> str:
        """The topic's full name after remapping."""
        return self._subscription.topic_name

    @property
    def has_publishers(self) -> bool:
        """Whether anybody publishes on the topic."""
        return self._node.count_publishers(self.topic) > 0

    def refresh(self) -> None:
        """Follow the publishers' reliability (auto only)."""
        if not self._auto:
            return
        publishers = self._node.get_publishers_info_by_topic(self.topic)
        reliable = all(info.qos_profile.reliability == ReliabilityPolicy.RELIABLE for info in publishers)
        if reliable != self._reliable:
            self._reliable = reliable
            self.destroy()
            self._subscription = self._subscribe()

    def silence(self, limit_s: float) -> str | None:
        """A sentence if nothing has come for ``limit_s`` seconds, with what is known about the publishers."""
        if self._durability == DurabilityPolicy.TRANSIENT_LOCAL:
            return None
        last = max(self._since, self._health.last_tick(self.source) or self._since)
        if time.monotonic() - last < limit_s or not (self._needed or self.has_publishers):
            return None
        publishers = self._node.get_publishers_info_by_topic(self.topic)
        described = ", ".join(
            f"{name_of(info)} ({info.topic_type}, {info.qos_profile.reliability.short_key}, "
            f"{info.qos_profile.durability.short_key})"
            for info in publishers
        )
        known = f"publishers: {len(publishers)}" + (f", their type and QoS: {described}" if publishers else "")
        own = "reliable" if self._reliable else "best_effort"
        return f"no message on {self.topic} for {limit_s:g} s; {known}; asked for {own}"

    def destroy(self) -> None:
        """End the subscription."""
        self._node.destroy_subscription(self._subscription)

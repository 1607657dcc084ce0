"""Looks at a live topic for some seconds. Of events: who publishes how, who can't hear it, what is in the packets. Of
diagnostics: what the nodes say of themselves."""

from __future__ import annotations

import time
from collections.abc import Callable

import rclpy
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.parameter import Parameter
from rclpy.qos import DurabilityPolicy, ReliabilityPolicy
from rclpy.topic_endpoint_info import TopicEndpointInfo

from event_sam3d_ros.doctor import Diagnosis, Finding, StreamDoctor
from event_sam3d_ros.errors import ConfigurationError, EventSam3dError
from event_sam3d_ros.events.codecs import ARRAY_TYPES, PACKET_TYPES
from event_sam3d_ros.events.warmup import warm_up
from event_sam3d_ros.nodes.health import Health
from event_sam3d_ros.nodes.inputs import Input, name_of
from event_sam3d_ros.nodes.message_classes import message_class

_DISCOVERY_S = 5.0  # on a busy machine it takes more than three
_DIAGNOSTICS = "diagnostic_msgs/msg/DiagnosticArray"
_TYPES = (*PACKET_TYPES, *ARRAY_TYPES)


def examine_topic(topic: str, seconds: float) -> Diagnosis:
    """Subscribe as event_image_node does, listen, and say what is wrong."""
    if seconds <= 0:
        raise ConfigurationError(f"can't listen for {seconds:g} s: give more than 0", reason="bad_parameter")
    rclpy.init(args=[])
    try:
        node = Node("event_sam3d_doctor")
        try:
            return _examine(node, topic, seconds)
        finally:
            node.destroy_node()
    finally:
        rclpy.try_shutdown()


def _examine(node: Node, topic: str, seconds: float) -> Diagnosis:
    name = node.resolve_topic_name(topic)
    _spin(node, _DISCOVERY_S, until=lambda: bool(node.get_publishers_info_by_topic(name)))
    publishers = node.get_publishers_info_by_topic(name)
    if not publishers:
        return Diagnosis(name, [], [_nobody(node, name)])
    if node.count_publishers("/clock"):  # a recording is played: its time is now
        node.set_parameters([Parameter("use_sim_time", value=True)])
    kind = publishers[0].topic_type
    if kind == _DIAGNOSTICS:
        return _of_nodes(node, name, seconds)
    try:
        if kind not in _TYPES:
            known = ", ".join(_TYPES)
            raise ConfigurationError(
                f"the topic is of type {kind}; events are {known}, and what nodes say of themselves {_DIAGNOSTICS}",
                reason="not_events",
            )
        doctor = StreamDoctor(kind)
        warm_up()  # packets that come while kernels are compiled would be lost
        _listen(node, name, message_class(kind), doctor, seconds)
        facts, findings = doctor.facts(), doctor.findings()
    except EventSam3dError as error:
        facts, findings = [], [Finding(error.reason, str(error))]
    # Only now, for the names of nodes are known later than their publishers.
    publishers = node.get_publishers_info_by_topic(name)
    facts[:0] = [f"published by {_describe(publisher)}" for publisher in publishers]
    return Diagnosis(f"{name} ({kind})", facts, _of_publishers(publishers) + _deaf_subscribers(node, name) + findings)


def _of_nodes(node: Node, name: str, seconds: float) -> Diagnosis:
    """The newest diagnostics of every node, and what they warn of."""
    statuses: dict[str, DiagnosticStatus] = {}
    levels = {DiagnosticStatus.WARN: "warning", DiagnosticStatus.ERROR: "error", DiagnosticStatus.STALE: "stale"}
    subscription = node.create_subscription(
        DiagnosticArray, name, lambda array: statuses.update({status.name: status for status in array.status}), 10
    )
    try:
        _spin(node, seconds)
    finally:
        node.destroy_subscription(subscription)
    diagnosis = Diagnosis(f"{name} ({_DIAGNOSTICS})")
    for status in statuses.values():
        diagnosis.facts += [status.name, *(f"  {item.key}: {item.value}" for item in status.values)]
        if status.level in levels:
            diagnosis.findings.append(Finding(levels[status.level], f"{status.name}: {status.message}"))
    if not statuses:
        diagnosis.findings.append(Finding("no_messages", f"no node said anything for {seconds:g} s"))
    return diagnosis


def _listen(node: Node, name: str, kind: type, doctor: StreamDoctor, seconds: float) -> None:
    health = Health(node.get_logger().warning)
    source = Input(
        node,
        health,
        "events",
        kind,
        name,
        # Until /clock has told the time it is 0.
        lambda cdr: doctor.add_message(cdr, node.get_clock().now().nanoseconds or None),
        reliability="best_effort",
        depth=1000,
        raw=True,
        drain=True,
    )
    try:
        _spin(node, seconds)
    finally:
        source.destroy()


def _spin(node: Node, seconds: float, until: Callable[[], bool] = lambda: False) -> None:
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    end = time.monotonic() + seconds
    try:
        while not until() and time.monotonic() < end:
            executor.spin_once(timeout_sec=0.05)
    finally:
        executor.remove_node(node)
        executor.shutdown()


def _nobody(node: Node, name: str) -> Finding:
    others = [topic for topic, kinds in node.get_topic_names_and_types() if set(kinds) & set(_TYPES)]
    there = f"events are on {', '.join(sorted(others))}" if others else "nothing else publishes events either"
    return Finding(
        "no_publisher",
        f"nobody publishes on {name}, and there is no such file; {there}: see that the driver runs, in the same "
        "ROS_DOMAIN_ID and namespace",
    )


def _of_publishers(publishers: list[TopicEndpointInfo]) -> list[Finding]:
    if len(publishers) < 2:
        return []
    names = ", ".join(map(name_of, publishers))
    sentence = f"{len(publishers)} publish here ({names}): two streams can't be told apart; remap all but one"
    return [Finding("several_publishers", sentence)]


def _deaf_subscribers(node: Node, name: str) -> list[Finding]:
    """Subscriptions that ask for more than a publisher offers: they get nothing, and rarely say so."""
    found = []
    for subscriber in node.get_subscriptions_info_by_topic(name):
        for publisher in node.get_publishers_info_by_topic(name):
            wanted, offered = subscriber.qos_profile, publisher.qos_profile
            asked = []
            if ReliabilityPolicy.RELIABLE == wanted.reliability != offered.reliability:
                asked.append("reliable, where only best effort is offered")
            if DurabilityPolicy.TRANSIENT_LOCAL == wanted.durability != offered.durability:
                asked.append("transient local, where only volatile is offered")
            if asked:
                found.append(
                    Finding(
                        "qos_mismatch",
                        f"{name_of(subscriber)} gets nothing from {name_of(publisher)}: it asks for "
                        f"{' and '.join(asked)}; subscribe with the QoS of sensor data (best effort, volatile)",
                    )
                )
    return found


def _describe(publisher: TopicEndpointInfo) -> str:
    qos = publisher.qos_profile
    return f"{name_of(publisher)} ({qos.reliability.short_key}, {qos.durability.short_key})"

"""What the nodes of this package share: parameters from a table, lifecycle with autostart, diagnostics, a clean end."""

from __future__ import annotations

import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import rclpy
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor, SetParametersResult
from rclpy.clock import Clock, ClockType
from rclpy.executors import SingleThreadedExecutor
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from rclpy.node import Node
from rclpy.parameter import Parameter as RosParameter
from rclpy.publisher import Publisher
from rclpy.qos import QoSProfile
from rclpy.signals import SignalHandlerOptions
from rclpy.timer import Timer

from event_sam3d_ros.errors import ConfigurationError, EventSam3dError
from event_sam3d_ros.nodes.health import Health
from event_sam3d_ros.nodes.inputs import Input
from event_sam3d_ros.nodes.parameters import Parameter, ParameterTable

_DIAGNOSTICS_PERIOD_S = 1.0
_REFRESH_PERIOD_S = 0.5
_FOREIGN_PARAMETERS = ("use_sim_time", "start_type_description_service")
_FOREIGN_PREFIXES = ("qos_overrides.",)
NO_CLOCK = "the latency of a result is not known: use_sim_time is set, but nothing has come on /clock so far"


class PipelineNode(LifecycleNode):
    """A lifecycle node that configures and activates itself unless ``autostart`` is false.

    ``exit_code``: set where that failed, for nobody would try again; without ``autostart`` a lifecycle manager may.

    Subclasses fill ``configure`` (load, ``add_output``), ``activate`` (``add_input``, start threads), ``deactivate``
    and ``cleanup`` (the way back; both must also work on what is half made; inputs and outputs end by themselves). An
    EventSam3dError from them makes the transition fail with its sentence. Raises ConfigurationError for unknown
    parameters and values that are not allowed.
    """

    def __init__(self, name: str, table: ParameterTable, reasons: Iterable[str]) -> None:
        super().__init__(name, automatically_declare_parameters_from_overrides=True)
        self._table = table
        try:
            declare_parameters(self, table)
        except ConfigurationError:
            self.destroy_node()
            raise
        self.health = Health(self.get_logger().warning, reasons)
        self.inputs: list[Input] = []
        self._outputs: list[Publisher] = []
        self.state = "unconfigured"
        self.exit_code: int | None = None
        self._failure = ""
        self._silent: dict[str, str] = {}
        self._diagnostics = self.create_publisher(DiagnosticArray, "/diagnostics", 10)
        # Steady timers: with use_sim_time the node's own clock stands still until somebody publishes /clock.
        self.steady_clock = Clock(clock_type=ClockType.STEADY_TIME)
        self.add_timer(_DIAGNOSTICS_PERIOD_S, self._publish_diagnostics)
        self.add_timer(_REFRESH_PERIOD_S, self._refresh_inputs)
        if self.value("autostart"):
            self._autostart_timer = self.create_timer(0.0, self._autostart, clock=self.steady_clock)
        self._answer_impossible_transitions()

    # Parameters

    def value(self, name: str) -> Any:
        """The value of a parameter."""
        return self.get_parameter(name).value

    def set_parameters_atomically(self, parameter_list: list[RosParameter]) -> SetParametersResult:
        """As in rclpy, but refusals are sentences and are counted, and whole numbers do for doubles."""
        try:
            checked = [self._check_change(parameter) for parameter in parameter_list]
            if self.state != "unconfigured":
                changed = {parameter.name: parameter.value for parameter in checked}
                self.check_together(lambda name: changed[name] if name in changed else self.value(name))
        except ConfigurationError as error:
            self.health.report(error.reason, str(error))
            return SetParametersResult(successful=False, reason=str(error))
        result = super().set_parameters_atomically(checked)
        if result.successful and self.state != "unconfigured":
            self.parameters_changed()
        return result

    def _check_change(self, change: RosParameter) -> RosParameter:
        if _is_foreign(change.name):
            return change
        parameter = self._table.get(change.name)
        value = parameter.check(change.value)
        if not parameter.dynamic and self.state != "unconfigured":
            raise ConfigurationError(
                f"parameter {change.name} can be changed only while the node is unconfigured (it is {self.state}): "
                "deactivate and clean it up before, with ros2 lifecycle set",
                reason="bad_parameter",
            )
        return RosParameter(change.name, value=value)

    def check_together(self, value: Callable[[str], Any]) -> None:
        """Raise ConfigurationError where parameters contradict each other; called before they are used."""

    # Lifecycle

    def configure(self) -> None:
        """Load what is needed and make the publishers."""

    def activate(self) -> None:
        """Subscribe and start to work."""

    def deactivate(self) -> None:
        """The way back from ``activate``."""

    def cleanup(self) -> None:
        """The way back from ``configure``."""

    def parameters_changed(self) -> None:
        """Take over dynamic parameters; called while configured."""

    def _autostart(self) -> None:
        self._autostart_timer.cancel()
        for trigger in (self.trigger_configure, self.trigger_activate):
            result = trigger()
            if result != TransitionCallbackReturn.SUCCESS:
                self.exit_code = 2 if result == TransitionCallbackReturn.FAILURE else 1
                return

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Lifecycle transition."""
        return self._transition(self._configure, "inactive", undo=self._cleanup)

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Lifecycle transition."""
        return self._transition(self.activate, "active", undo=self._deactivate)

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Lifecycle transition."""
        return self._transition(self._deactivate, "inactive")

    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Lifecycle transition."""
        return self._transition(self._cleanup, "unconfigured")

    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Lifecycle transition."""
        return self._transition(self._release, "finalized")

    def on_error(self, state: LifecycleState) -> TransitionCallbackReturn:
        """After an unexpected error in a transition: release everything and start over from unconfigured."""
        self._release()
        self.state = "unconfigured"
        return TransitionCallbackReturn.SUCCESS

    def _transition(
        self, action: Callable[[], None], target: str, undo: Callable[[], None] = lambda: None
    ) -> TransitionCallbackReturn:
        try:
            action()
        except EventSam3dError as error:
            undo()
            self._failure = f"{error.reason}: {error}"
            self.health.count(error.reason, str(error))
            self.get_logger().error(self._failure)
            return TransitionCallbackReturn.FAILURE
        except Exception:  # rclpy would hide it: it turns any exception into ERROR without a word
            self._failure = traceback.format_exc().strip().splitlines()[-1]
            self.get_logger().error(f"unexpected error on the way to {target}:\n{traceback.format_exc()}")
            return TransitionCallbackReturn.ERROR
        self._failure = ""
        self.state = target
        self.get_logger().info(target)
        return TransitionCallbackReturn.SUCCESS

    def _configure(self) -> None:
        self.check_together(self.value)
        self.configure()

    def _deactivate(self) -> None:
        for connection in self.inputs:
            connection.destroy()
        self.inputs.clear()
        self._silent.clear()
        self.deactivate()

    def _cleanup(self) -> None:
        self.cleanup()
        for publisher in self._outputs:
            self.destroy_publisher(publisher)
        self._outputs.clear()

    def _release(self) -> None:
        self._deactivate()
        self._cleanup()

    def _answer_impossible_transitions(self) -> None:
        """Answer a request for a transition that the state does not allow; rclpy lets its error end the spinning."""
        answer = self._service_change_state.callback

        def guarded(request: Any, response: Any) -> Any:
            try:
                return answer(request, response)
            except rclpy._rclpy_pybind11.RCLError as error:
                self.get_logger().error(f"transition refused while {self.state}: {str(error).splitlines()[0]}")
                response.success = False
                return response

        self._service_change_state.callback = guarded

    def close(self) -> None:
        """Release everything and destroy the node."""
        self._release()
        self.destroy_node()

    # Inputs, outputs and diagnostics

    def add_output(self, message_type: type, topic: str, qos: QoSProfile | int) -> Publisher:
        """Publish until cleanup; a number is the depth of a reliable publisher."""
        self._outputs.append(self.create_publisher(message_type, topic, qos))
        return self._outputs[-1]

    def add_input(
        self, source: str, message_type: type, topic: str, callback: Callable[[Any], None], **options: Any
    ) -> Input:
        """Subscribe until deactivation; see ``Input``. QoS comes from the parameters unless given."""
        qos = {"reliability": self.value("qos_reliability"), "depth": self.value("qos_depth")}
        connection = Input(self, self.health, source, message_type, topic, callback, **(qos | options))
        self.inputs.append(connection)
        return connection

    def add_timer(self, period_s: float, callback: Callable[[], None]) -> Timer:
        """Call on a steady clock, until ``destroy_timer``; what the callback raises is counted and logged."""

        def guarded() -> None:
            try:
                callback()
            except Exception as error:  # whatever it was, it must not end the node
                self.health.unexpected(callback.__name__, error)

        return self.create_timer(period_s, guarded, clock=self.steady_clock)

    def _refresh_inputs(self) -> None:
        for connection in self.inputs:
            connection.refresh()
            silence = connection.silence(self.value("watchdog_s"))
            if silence and connection.source not in self._silent:
                self.get_logger().warning(silence)
            if silence:
                self._silent[connection.source] = silence
            else:
                self._silent.pop(connection.source, None)

    def age_ms(self, stamp_ns: int) -> float | None:
        """How long ago a stamp was; None as long as the node's clock waits for /clock."""
        now_ns = self.get_clock().now().nanoseconds
        return (now_ns - stamp_ns) / 1e6 if now_ns else None

    def diagnostic_values(self) -> dict[str, str]:
        """More key-values for the diagnostics."""
        return {}

    def _publish_diagnostics(self) -> None:
        level, message = self._summary()
        values = {"state": self.state} | self.health.values() | self.diagnostic_values()
        status = DiagnosticStatus(level=level, name=f"{self.get_name()}: pipeline", message=message)
        status.values = [KeyValue(key=key, value=value) for key, value in values.items()]
        array = DiagnosticArray(status=[status])
        array.header.stamp = self.get_clock().now().to_msg()
        self._diagnostics.publish(array)

    def _summary(self) -> tuple[bytes, str]:
        if self._failure:
            return DiagnosticStatus.ERROR, f"{self.state}: {self._failure}"
        problems = [f"{reason}: {sentence}" for reason, sentence in self.health.recent().items()]
        problems += self._silent.values()
        if problems:
            return DiagnosticStatus.WARN, "; ".join(problems)
        return DiagnosticStatus.OK, self.state


def _is_foreign(name: str) -> bool:
    """Whether a parameter belongs to rclpy and not to us."""
    return name in _FOREIGN_PARAMETERS or name.startswith(_FOREIGN_PREFIXES)


def declare_parameters(node: Node, table: ParameterTable) -> None:
    """Declare a table's parameters on a node that was made with ``automatically_declare_parameters_from_overrides``.

    Raises ConfigurationError for given ones that are unknown or not allowed.
    """
    given = {name: p.value for name, p in node.get_parameters_by_prefix("").items() if not _is_foreign(name)}
    given = table.check(given)
    for name, parameter in table.by_name.items():
        if name in given:
            node.undeclare_parameter(name)
        value = given.get(name, parameter.default)
        node.declare_parameter(name, value, _descriptor(parameter), ignore_override=True)


def _descriptor(parameter: Parameter) -> ParameterDescriptor:
    descriptor = ParameterDescriptor(description=parameter.description)
    descriptor.additional_constraints = parameter.allowed() + (
        "" if parameter.dynamic else "; can be changed only while the node is unconfigured"
    )
    bounds = parameter.minimum, parameter.maximum
    if None not in bounds and isinstance(parameter.default, float):
        descriptor.floating_point_range = [FloatingPointRange(from_value=bounds[0], to_value=bounds[1])]
    elif None not in bounds:
        descriptor.integer_range = [IntegerRange(from_value=bounds[0], to_value=bounds[1], step=1)]
    return descriptor


@contextmanager
def ros_until_signal(args: Sequence[str] | None) -> Iterator[threading.Event]:
    """rclpy from init to shutdown; the event is set by SIGINT or SIGTERM.

    Signals only set this event, because rclpy's own handlers take the context away from under a thread that publishes.
    """
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    rclpy.init(args=args, signal_handler_options=SignalHandlerOptions.NO)
    try:
        yield stop
    finally:
        rclpy.shutdown()
        # Python gives signals back to their default while it ends: a second one would spoil the exit code.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)


def run_node(make_node: Callable[[], PipelineNode], args: Sequence[str] | None = None) -> int:
    """Spin a node until SIGINT or SIGTERM; the exit code: 0, or where it could not start 2 (parameters that are refused
    or contradict each other, files that are missing or damaged) or 1 (an unexpected error).

    The end is in order: executor, the node's worker and entities, context.
    """
    with ros_until_signal(args) as stop:
        try:
            node = make_node()
        except ConfigurationError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        executor = SingleThreadedExecutor()
        executor.add_node(node)
        try:
            while not stop.is_set() and node.exit_code is None:
                executor.spin_once(timeout_sec=0.1)
        finally:
            executor.shutdown()
            node.close()
    return node.exit_code or 0

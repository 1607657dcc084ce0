"""The viewer as a web server on this machine."""

from __future__ import annotations

import contextlib
import io
import socket

import viser

from event_sam3d_ros.errors import ConfigurationError
from event_sam3d_ros.viewer.access import only_own_pages
from event_sam3d_ros.viewer.frames import Frames, ViewFrame
from event_sam3d_ros.viewer.panel import Panel
from event_sam3d_ros.viewer.player import Player
from event_sam3d_ros.viewer.scene import SceneView


class Viewer:
    """Serves ``frames`` on ``host`` and ``port`` (0: any free one). ConfigurationError where that can't be had.

    `run` shows frames until `stop`; then `close`. ``url``: for the browser.
    """

    def __init__(self, frames: Frames, host: str, port: int, *, playing: bool = True) -> None:
        self._frames = frames
        self._server = open_server(host, port)
        self.player = Player(frames, self._show, playing=playing, idle=lambda: self._panel.tell_news())
        self._scene = SceneView(self._server)
        self._panel = Panel(self._server, frames, self._scene, self.player)
        shown = f"[{host}]" if ":" in host else host
        self.url = f"http://{shown}:{self._server.get_port()}"

    def _show(self, index: int, frame: ViewFrame) -> None:
        with self._server.atomic():
            self._panel.add_objects(frame.objects)
            picture = self._panel.picture(frame)
            has_begun = self._scene.show(index, frame, picture, self._frames.frame)
            self._panel.show(index, frame, picture)
            if has_begun:
                self._look_at_it()

    def _look_at_it(self) -> None:
        eye, target, up = self._scene.view()
        camera = self._server.initial_camera
        camera.position, camera.look_at, camera.up = eye, target, up
        for client in self._server.get_clients().values():
            with client.atomic():
                client.camera.up_direction, client.camera.position, client.camera.look_at = up, eye, target

    def run(self) -> None:
        """Works until `stop`."""
        self.player.run()

    def stop(self) -> None:
        """Ends `run`; from any thread."""
        self.player.stop()

    def close(self) -> None:
        """Ends the server and the source."""
        self._frames.close()
        with contextlib.redirect_stdout(io.StringIO()):
            self._server.stop()


class _Server(viser.ViserServer):
    """One that stays on this machine: whoever is connected could ask viser for a tunnel to the internet."""

    def request_share_url(self, verbose: bool = True) -> None:
        """There is none."""


def open_server(host: str, port: int) -> viser.ViserServer:
    """ConfigurationError where nothing can listen there."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            free = probe.getsockname()[1]
    except OSError as error:
        raise ConfigurationError(
            f"can't listen on {host}, port {port} ({error.strerror or error}): give another --port, or an address of "
            "this machine as --host",
            reason="bad_address",
        ) from error
    with contextlib.redirect_stdout(io.StringIO()), only_own_pages(host):  # viser greets; the command has its own words
        server = _Server(host, free, label="event_sam3d_ros", verbose=False)
    if server.get_port() != free:  # taken in this moment: viser goes on to the next one
        server.stop()
        raise ConfigurationError(f"port {free} of {host} is in use: give another --port", reason="bad_address")
    return server

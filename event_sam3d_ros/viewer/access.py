"""Who may connect: browsers let any web page open a websocket to any address, the viewer's on this machine included."""

from __future__ import annotations

import http
import ipaddress
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any
from urllib.parse import urlsplit

import websockets.asyncio.server
from websockets.asyncio.server import ServerConnection
from websockets.http11 import Request

_HOST = re.compile(r"(\[[0-9a-fA-F:.]+\]|[^:\[\]]+)(:\d+)?")


def refusal(host: str | None, origin: str | None, *, is_local: bool) -> str | None:
    """Why a request with these headers is not answered; None if it is.

    ``origin``: the page that asks, which has to be the viewer's own; programs other than browsers send none.
    ``host``: what the browser takes the server for. Where the server listens on loopback alone (``is_local``) that is a
    loopback name, else a foreign domain was made to point here (DNS rebinding).
    """
    name = _HOST.fullmatch(host or "")
    if name is None:
        return "no usable Host header"
    if is_local and not is_loopback(name[1].strip("[]")):
        return f"this viewer is for this machine alone, not for {name[1]}"
    if origin is not None and urlsplit(origin).netloc.lower() != name[0].lower():
        return f"pages of {origin} may not read this viewer"
    return None


def is_loopback(name: str) -> bool:
    """Whether a host name or address stays on the machine."""
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return name.lower() in ("localhost", "localhost.")


@contextmanager
def only_own_pages(host: str) -> Iterator[None]:
    """A server that viser starts in this block refuses (403) whom `refusal` names; viser itself asks nobody.

    viser gives no access to the requests, so what it hands to the websockets library is wrapped on the way.
    """
    serve = websockets.asyncio.server.serve
    is_local = is_loopback(host)

    @wraps(serve)
    def guarded(*args: Any, process_request: Any, **options: Any) -> Any:
        def check(connection: ServerConnection, request: Request) -> Any:
            why = refusal(request.headers.get("Host"), request.headers.get("Origin"), is_local=is_local)
            if why is not None:
                return connection.respond(http.HTTPStatus.FORBIDDEN, why + "\n")
            return process_request(connection, request)

        return serve(*args, process_request=check, **options)

    websockets.asyncio.server.serve = guarded  # type: ignore[misc, assignment]
    try:
        yield
    finally:
        websockets.asyncio.server.serve = serve  # type: ignore[misc]

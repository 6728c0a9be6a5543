"""Listening, until Ctrl-C; then everything is put away."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import uvicorn

from normscape.errors import UserError
from normscape.explore.app import create_app
from normscape.explore.security import Guard, is_loopback
from normscape.explore.storage import Storage
from normscape.explore.trained import Trained
from normscape.explore.work import Worker

MOST_WAITING = 16
"""Scans in the queue."""
MOST_REQUESTS = 128
"""Requests at a time; more are refused."""
_GOODBYE_SECONDS = 10.0
"""How long a scan that is being scored may take to its next step when the server ends."""


@dataclass(frozen=True)
class Settings:
    """How the page is served.

    Attributes:
        host: address or name to listen at.
        port: 0 takes a free one.
        folder: of dropped files; a temporary one, deleted at the end, when None.
        most_bytes: of a dropped file.
        most_uploads: dropped files at once.
        token: asked for at the first visit, when it is not None.
    """

    host: str
    port: int
    folder: Path | None
    most_bytes: int
    most_uploads: int
    token: str | None


@dataclass(frozen=True)
class Listening:
    """A server that can begin.

    Attributes:
        server: runs until it is asked to stop.
        bound: its socket.
        url: of the page, with the token.
        storage: of dropped files.
    """

    server: uvicorn.Server
    bound: socket.socket
    url: str
    storage: Storage

    def run(self) -> None:
        """Serve until Ctrl-C."""
        self.server.run(sockets=[self.bound])


@contextmanager
def listening(trained: Trained, settings: Settings) -> Iterator[Listening]:
    """Everything that the page needs; at the end the worker stops and dropped files are deleted.

    Raises:
        UserError: the address cannot be listened at, or the folder cannot be written.
    """
    bound = bind(settings.host, settings.port)
    try:
        port = bound.getsockname()[1]
        storage = Storage(settings.folder, most=settings.most_uploads)
        worker = Worker(most=MOST_WAITING)
        try:
            guard = Guard(settings.host, port, settings.token)
            app = create_app(trained, storage, worker, guard, most_bytes=settings.most_bytes)
            config = uvicorn.Config(
                app, log_level="warning", access_log=False, server_header=False, proxy_headers=False, lifespan="off",
                limit_concurrency=MOST_REQUESTS, timeout_graceful_shutdown=2,
            )  # fmt: skip
            bound.listen()  # whoever reads the address and comes at once waits for the server, and is not turned away
            yield Listening(uvicorn.Server(config), bound, page_url(settings.host, port, settings.token), storage)
        finally:
            worker.close(_GOODBYE_SECONDS)
            storage.close()
    finally:
        bound.close()


def bind(host: str, port: int) -> socket.socket:
    """A socket at an address.

    Raises:
        UserError: it cannot be used.
    """
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        bound = socket.socket(family, kind)
    except OSError as error:
        raise UserError(f"--host {host}: no address of this machine ({error.strerror})") from error
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except OSError as error:
        bound.close()
        if error.errno == errno.EADDRINUSE:
            raise UserError(f"--port {port}: in use; another number, or 0 for a free one") from error
        raise UserError(f"--host {host} --port {port}: cannot be listened at ({error.strerror})") from error
    return bound


def page_url(host: str, port: int, token: str | None) -> str:
    """The address to open; of a server that listens everywhere, this machine's name."""
    everywhere = host in ("0.0.0.0", "::")
    shown = socket.gethostname() if everywhere else host
    shown = f"[{shown}]" if ":" in shown else shown
    return f"http://{shown}:{port}/" + (f"?token={token}" if token else "")


def warnings(settings: Settings) -> Iterator[str]:
    """What somebody who serves to others should know."""
    if not is_loopback(settings.host):
        yield "other machines can reach this page: give its address, which holds a token, only to whom you trust"
        yield "it is sent without encryption; across an untrusted network use an SSH tunnel to 127.0.0.1 instead"

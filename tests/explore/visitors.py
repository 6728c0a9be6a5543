"""People with a browser each, as far as a server can tell."""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlencode

from normscape.explore.server import Listening

MAP_SECONDS = 300.0
"""Longest time until a scan has its map, on a machine that runs other tests, too."""


@dataclass
class Answer:
    """What a server answered."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> str:
        """The sentence of an error."""
        return str(self.json["error"])


@dataclass
class Browser:
    """Somebody with a cookie of their own, who sends what a page of the server would."""

    port: int
    cookie: str = ""
    headers: dict[str, str] = field(default_factory=dict)

    def ask(self, method: str, path: str, body: Any = None, *, headers: dict[str, str] | None = None, **query: str) -> Answer:
        """One request. `headers` are sent in place of a page's."""
        own = f"127.0.0.1:{self.port}"
        sent = {"Host": own, "Origin": f"http://{own}"} | ({"Cookie": self.cookie} if self.cookie else {})
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            target = f"{path}?{urlencode(query)}" if query else path
            merged = {name: value for name, value in (sent | self.headers | (headers or {})).items() if value}
            connection.request(method, target, body, merged)
            answer = connection.getresponse()
            found = Answer(answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read())
        finally:
            connection.close()
        if "set-cookie" in found.headers:
            self.cookie = found.headers["set-cookie"].split(";")[0]
        return found

    def opened(self) -> Browser:
        """After the page was opened."""
        assert self.ask("GET", "/").status == 200
        return self

    def bring(self, content: Any, name: str = "head.nii.gz", **query: str) -> Answer:
        """Drop a scan of somebody aged 63, already stripped."""
        return self.ask("PUT", "/api/scans", content, **({"name": name, "age": "63", "strip": "none"} | query))

    def wait(self, number: str, *states: str, seconds: float = MAP_SECONDS) -> dict[str, Any]:
        """A scan's description, once it is in one of some states."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            found = next(scan for scan in self.ask("GET", "/api/scans").json["scans"] if scan["id"] == number)
            if found["state"] in states:
                return dict(found)
            time.sleep(0.1)
        raise AssertionError(f"still {found}")


@dataclass
class Site:
    """A server that runs."""

    listening: Listening

    @property
    def port(self) -> int:
        return int(self.listening.bound.getsockname()[1])

    def browser(self, **headers: str) -> Browser:
        """Somebody new."""
        return Browser(self.port, headers=headers)


@contextmanager
def running(page: Listening) -> Iterator[Site]:
    """A server in a thread of its own; it has ended with the block."""
    thread = threading.Thread(target=page.run, daemon=True)
    thread.start()
    try:
        wait_for(lambda: page.server.started or not thread.is_alive())
        assert thread.is_alive()
        yield Site(page)
    finally:
        page.server.should_exit = True
        thread.join(20)
    assert not thread.is_alive()


def wait_for(state: Callable[[], bool], seconds: float = 60) -> None:
    """Until something is so."""
    end = time.monotonic() + seconds
    while not state():
        assert time.monotonic() < end
        time.sleep(0.05)


Serve = Callable[..., Site]

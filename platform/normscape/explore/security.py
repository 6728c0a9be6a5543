"""Who may ask: the page's own tab in the browser of somebody who was given its address, and nobody else.

What could go wrong, and what is done about it:

- Another page in the same browser sends requests to this server. Its host name leads here only by DNS rebinding, so the `Host`
  header has to be an address, `localhost` or this machine's name; what changes something has to come from a page of this server
  (`Origin`); the cookie travels with requests of other pages only where they lead a person here (`SameSite=Lax`). With `Strict`,
  who follows a link to the page a second time would get a new session, and be without the scans of the first.
- Somebody else on the network opens the page. Where the server listens beyond this machine, the first visit needs a token.
- Two people use one server. Each browser has a session of its own, a signed cookie, and sees only its own scans.
- A file's name or content reaches the page as a script. The page runs only its own files (`Content-Security-Policy`).
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import secrets
import socket
from collections.abc import Awaitable, Callable
from urllib.parse import urlsplit

from fastapi import Request, Response
from fastapi.responses import JSONResponse

from normscape.errors import UserError

TOKEN_VARIABLE = "NORMSCAPE_EXPLORE_TOKEN"
SHORTEST_TOKEN = 16
PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; frame-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
RESULT_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:; connect-src data: blob:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'self'; sandbox allow-scripts"
)
"""A scan's page has its style, script and volumes inside. The sandbox makes it a page of nowhere: it has no cookie, reaches
nothing of this server, and nothing else."""
_SAFE = ("GET", "HEAD")
Next = Callable[[Request], Awaitable[Response]]


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a server that listens there."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def chosen_token(host: str, given: str | None) -> str | None:
    """The token of a server: the one that was given, else a random one where other machines can reach it, else none.

    Raises:
        UserError: the given one is too short to be a secret.
    """
    if given:
        if len(given) < SHORTEST_TOKEN:
            raise UserError(f"{TOKEN_VARIABLE}: expected at least {SHORTEST_TOKEN} characters, found {len(given)}")
        return given
    return None if is_loopback(host) else secrets.token_urlsafe(24)


class Guard:
    """Looks at every request before anything else does.

    Args:
        host: that the server listens at.
        port: likewise; part of the cookie's name, since cookies do not tell ports apart.
        token: asked for at the first visit; None: nobody else can reach the server.
    """

    def __init__(self, host: str, port: int, token: str | None) -> None:
        self._token = token
        self._names = {"localhost", host.lower()}
        if token is not None:  # else a name could lead here by DNS rebinding, and nothing else would be asked for
            self._names |= {socket.gethostname().lower(), socket.getfqdn().lower()}
        self._secret = secrets.token_bytes(32)
        self.cookie = f"normscape-explore-{port}"

    async def __call__(self, request: Request, call_next: Next) -> Response:
        """Refuse, or hand on with `request.state.session` set."""
        response = self._refused(request)
        if response is None:
            session, is_new = self._session(request), False
            if session is None:
                response = self._stranger(request)
                session, is_new = secrets.token_hex(16), True
            if response is None:
                request.state.session = session
                response = await call_next(request)
                if is_new:
                    value = f"{session}.{self._sign(session)}"
                    response.set_cookie(self.cookie, value, httponly=True, samesite="lax", path="/")
        self._add_headers(response)
        return response

    def _refused(self, request: Request) -> Response | None:
        host = request.headers.get("host", "")
        if not self._is_ours(host):
            return problem(421, "this address is not one of this server's; open the one that it printed at its start")
        if request.method not in _SAFE:
            origin = request.headers.get("origin", "").lower()
            site = request.headers.get("sec-fetch-site", "same-origin")
            if origin not in (f"http://{host}".lower(), f"https://{host}".lower()) or site != "same-origin":
                return problem(403, "only the page itself may change something here")
        return None

    def _is_ours(self, host: str) -> bool:
        """A name of this machine, or a plain address, which no foreign name can stand for."""
        try:
            name = (urlsplit(f"//{host}").hostname or "").lower()
        except ValueError:
            return False
        if name in self._names:
            return True
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True

    def _stranger(self, request: Request) -> Response | None:
        """Who has no session yet gets one with the page, and only there. The page itself takes the token out of its address."""
        if request.url.path != "/" or request.method not in _SAFE:
            return problem(401, "no session; open the page's address in this browser first")
        if self._token is not None:
            given = request.query_params.get("token", "")
            if not hmac.compare_digest(given.encode(), self._token.encode()):
                return problem(401, "the address lacks its token; open the whole address that the server printed at its start")
        return None

    def _session(self, request: Request) -> str | None:
        number, _, signature = request.cookies.get(self.cookie, "").partition(".")
        return number if number and hmac.compare_digest(signature.encode(), self._sign(number).encode()) else None

    def _sign(self, number: str) -> str:
        return hmac.new(self._secret, number.encode(), hashlib.sha256).hexdigest()

    @staticmethod
    def _add_headers(response: Response) -> None:
        defaults = {
            "Content-Security-Policy": PAGE_POLICY,
            "X-Content-Type-Options": "nosniff",
            "Referrer-Policy": "no-referrer",
            "Cross-Origin-Resource-Policy": "same-origin",
            "Cross-Origin-Opener-Policy": "same-origin",
            "Cache-Control": "no-store",
        }
        for name, value in defaults.items():
            response.headers.setdefault(name, value)


def problem(status: int, sentence: str) -> JSONResponse:
    """What went wrong, in a plain sentence."""
    return JSONResponse({"error": sentence}, status)

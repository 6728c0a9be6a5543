"""Who is let in, what may be changed from where, and what the page may load."""

from __future__ import annotations

import re
import socket

import pytest

from normscape.errors import UserError
from normscape.explore.security import SHORTEST_TOKEN, chosen_token, is_loopback
from normscape.explore.server import bind, page_url
from normscape.explore.trained import Trained
from tests.explore.visitors import Serve

TOKEN = "a-token-that-is-long-enough"


def test_only_a_server_that_others_can_reach_needs_a_token() -> None:
    """A random one each time, unless it is given; a short one is refused."""
    for host in ("127.0.0.1", "localhost", "::1", "127.9.9.9"):
        assert is_loopback(host)
        assert chosen_token(host, None) is None
        assert chosen_token(host, TOKEN) == TOKEN
    for host in ("0.0.0.0", "::", "192.168.1.7", "example.org"):
        assert not is_loopback(host)
        first, second = chosen_token(host, None), chosen_token(host, "")
        assert first is not None
        assert second is not None
        assert first != second
        assert len(first) >= 24
    with pytest.raises(UserError, match="expected at least"):
        chosen_token("127.0.0.1", "x" * (SHORTEST_TOKEN - 1))
    assert page_url("::1", 80, "t") == "http://[::1]:80/?token=t"
    assert page_url("0.0.0.0", 80, None) == f"http://{socket.gethostname()}:80/"


def test_a_token_opens_the_page_and_a_cookie_keeps_it_open(chairs: Trained, serve: Serve) -> None:
    """Without the token there is nothing, with a wrong one neither; a cookie that the server did not sign is none."""
    site = serve(chairs, token=TOKEN)
    stranger = site.browser()
    for path in ("/", "/?token=", "/?token=wrong", f"/?token={TOKEN}x", "/?token=%C3%A9"):
        answer = stranger.ask("GET", path)
        assert (answer.status, "lacks its token" in answer.error, stranger.cookie) == (401, True, "")
    for path in ("/api/about", "/static/explore.js", f"/api/about?token={TOKEN}", "/nothing"):
        assert stranger.ask("GET", path).status == 401
    guest = site.browser()
    answer = guest.ask("GET", f"/?token={TOKEN}")
    assert answer.status == 200
    flags = answer.headers["set-cookie"].lower()
    assert "httponly" in flags
    assert "samesite=lax" in flags
    assert guest.ask("GET", "/api/about").status == 200
    assert guest.ask("GET", "/").status == 200
    name, _, value = guest.cookie.partition("=")
    number, _, signature = value.partition(".")
    for forged in (f"{'0' * 32}.{signature}", number, f"{number}.", f"{number}.{signature[:-1]}0{signature[-1]}", ".", "ü.ü"):
        answer = site.browser(Cookie=f"{name}={forged}".encode().decode("latin-1")).ask("GET", "/api/about")
        assert answer.status == 401, forged


def test_this_machine_s_name_is_answered_to_only_with_a_token(
    chairs: Trained, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As behind a proxy of its own. Without a token a name that somebody else's name server sends here would open the page."""
    monkeypatch.setattr(socket, "gethostname", lambda: "workstation")
    monkeypatch.setattr(socket, "getfqdn", lambda: "workstation.example.org")
    for token, status in ((TOKEN, 200), (None, 421)):
        site = serve(chairs, token=token)
        for name in ("workstation", "workstation.example.org"):
            assert site.browser(Host=name).ask("GET", f"/?token={TOKEN}").status == status


def test_nothing_is_left_in_a_browser_s_cache(chairs: Trained, serve: Serve) -> None:
    """The same address means another picture once the page is started with another model."""
    person = serve(chairs).browser().opened()
    for path in ("/", "/static/explore.js", "/api/about", "/api/frames?who=seed:1&control=angle&values=1"):
        answer = person.ask("GET", path)
        assert (answer.status, answer.headers["cache-control"]) == (200, "no-store"), path


@pytest.mark.parametrize(
    ("host", "status"),
    [("localhost", 200), ("127.0.0.1:9", 200), ("[::1]:1", 200), ("evil.example", 421), ("127.0.0.1.evil.example", 421),
     ("localhost@evil.example", 421), ("[", 421), ("localhost.", 421)],
)  # fmt: skip
def test_a_foreign_name_that_leads_here_is_refused(chairs: Trained, serve: Serve, host: str, status: int) -> None:
    """DNS rebinding: the name is the other page's, whatever address it stands for."""
    answer = serve(chairs).browser(Host=host).ask("GET", "/")
    assert answer.status == status
    if status != 200:
        assert "not one of this server's" in answer.error


def test_nothing_is_changed_from_another_page(chairs: Trained, serve: Serve) -> None:
    """Origin has to be the server's own, for everything that is not a GET, even with the cookie."""
    site = serve(chairs)
    person = site.browser().opened()
    for origin in ("https://evil.example", "null", "", f"http://127.0.0.1:{site.port + 1}", "http://[", "127.0.0.1"):
        for method, path in (("PUT", "/api/scans?name=a.nii"), ("DELETE", "/api/scans/0"), ("POST", "/api/scans/0/cancel")):
            answer = person.ask(method, path, headers={"Origin": origin})
            assert (answer.status, answer.error) == (403, "only the page itself may change something here"), origin
    answer = person.ask("DELETE", "/api/scans/0", headers={"Sec-Fetch-Site": "cross-site"})
    assert answer.status == 403
    assert person.ask("DELETE", "/api/scans/0").status == 404


def test_the_page_may_load_only_its_own_files(chairs: Trained, serve: Serve) -> None:
    """No inline script or style in the page, a policy that forbids them, nothing that another page may embed."""
    person = serve(chairs).browser().opened()
    page = person.ask("GET", "/")
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy
    text = page.body.decode()
    assert text.count("<script") == 1
    assert "<style" not in text
    assert " style=" not in text
    assert not re.search(r"<[^>]*\son\w+\s*=", text)
    assert "http://" not in text
    assert "https://" not in text
    for name in ("page.css", "explore.css", "explore.js", "frames.js", "scans.js"):
        answer = person.ask("GET", f"/static/{name}")
        assert answer.status == 200
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert b"://" not in answer.body, name
    for path in ("/static/../app.py", "/static/%2e%2e/app.py", "/static/index.html", "/docs", "/openapi.json"):
        answer = person.ask("GET", path)
        assert (answer.status, list(answer.json)) == (404, ["error"])


def test_an_address_that_is_taken_is_said() -> None:
    with bind("127.0.0.1", 0) as taken:
        taken.listen()
        with pytest.raises(UserError, match="in use; another number, or 0"):
            bind("127.0.0.1", taken.getsockname()[1])
    with pytest.raises(UserError, match=r"--host 192\.0\.2\.1"):
        bind("192.0.2.1", 0)

"""Who may look: checks of a request's Host, Origin and token. Pure functions of headers.

- On loopback no token is needed, but the page must have been asked for under a name of this machine itself:
  otherwise a page of the internet could point its own name at 127.0.0.1 and read along (DNS rebinding).
- On any other interface a token is needed. It comes in the address that the command prints, and becomes a
  cookie.
- A browser says which page opened a WebSocket; only the page of this very server may.
"""

from __future__ import annotations

import hmac
import ipaddress
from collections.abc import Sequence
from http.cookies import CookieError, SimpleCookie
from urllib.parse import parse_qs, urlsplit


def is_loopback(host: str) -> bool:
    """Whether a name or address means this machine, seen from itself."""
    if host.lower().rstrip(".") == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def host_allowed(host_header: str | None, *, token_needed: bool) -> bool:
    """Whether a request may name this host. With a token any name will do: a stranger does not have it."""
    if not host_header:
        return False
    try:
        host = urlsplit(f"//{host_header}").hostname
    except ValueError:
        return False
    return host is not None and (token_needed or is_loopback(host))


def origin_allowed(origin: str, host_header: str | None) -> bool:
    """Whether the page that sends a request is this server's. Programs other than browsers name none."""
    try:
        parts = urlsplit(origin)
    except ValueError:
        return False
    return parts.scheme in ("http", "https") and parts.netloc.lower() == (host_header or "").lower()


class TokenCheck:
    """Compares tokens in constant time.

    Args:
        token: None where none is needed. port: part of the cookie's name, because browsers do not keep
            cookies of different ports apart.
    """

    def __init__(self, token: str | None, port: int) -> None:
        self._token = token
        self._cookie = f"streamsplat_view_{port}"

    @property
    def needed(self) -> bool:
        return self._token is not None

    def in_query(self, path: str) -> bool:
        """Whether the address carries the token: /?token=..."""
        return any(self._same(given) for given in parse_qs(urlsplit(path).query).get("token", ()))

    def in_cookies(self, headers: Sequence[str]) -> bool:
        """Whether one of the Cookie headers carries it."""
        for header in headers:
            try:
                morsel = SimpleCookie(header).get(self._cookie)
            except CookieError:
                continue
            if morsel is not None and self._same(morsel.value):
                return True
        return False

    def cookie(self) -> str:
        """Value of a Set-Cookie header."""
        return f"{self._cookie}={self._token}; HttpOnly; SameSite=Strict; Path=/"

    def _same(self, given: str) -> bool:
        return self._token is not None and hmac.compare_digest(given.encode(), self._token.encode())

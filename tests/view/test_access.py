"""Who may look: names of this machine, pages of this server, holders of the token."""

from __future__ import annotations

import pytest

from streamsplat_edge.runtime.view.access import TokenCheck, host_allowed, is_loopback, origin_allowed
from streamsplat_edge.runtime.view.requests import BadRequest, RenderRequest, parse_request


@pytest.mark.parametrize("host", ["127.0.0.1", "127.3.2.1", "localhost", "LOCALHOST", "localhost.", "::1"])
def test_loopback(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize(
    "host", ["0.0.0.0", "::", "10.0.0.5", "jetson.local", "localhost.evil.com", "", "127.1"]
)
def test_not_loopback(host: str) -> None:
    assert not is_loopback(host)


@pytest.mark.parametrize(
    ("header", "allowed"),
    [
        ("127.0.0.1:8400", True),
        ("localhost:9999", True),
        ("[::1]:8400", True),
        ("localhost", True),
        ("evil.com:8400", False),
        ("127.0.0.1.evil.com", False),
        ("[::1", False),
        ("", False),
        (None, False),
        ("user@localhost.evil.com", False),
    ],
)
def test_host_on_loopback(header: str | None, allowed: bool) -> None:
    """A name of the internet that was pointed at this machine (DNS rebinding) is not answered."""
    assert host_allowed(header, token_needed=False) is allowed


def test_host_with_a_token() -> None:
    assert host_allowed("jetson.local:8400", token_needed=True)
    assert not host_allowed(None, token_needed=True)


@pytest.mark.parametrize(
    ("origin", "allowed"),
    [
        ("http://localhost:8400", True),
        ("https://localhost:8400", True),
        ("http://LOCALHOST:8400", True),
        ("http://localhost:8401", False),
        ("http://127.0.0.1:8400", False),
        ("http://evil.com", False),
        ("null", False),
        ("", False),
        ("file://localhost:8400", False),
        ("http://[", False),
    ],
)
def test_origin(origin: str, allowed: bool) -> None:
    assert origin_allowed(origin, "localhost:8400") is allowed


def test_token() -> None:
    check = TokenCheck("s3cret", 8400)
    assert check.needed
    assert check.in_query("/?token=s3cret") and check.in_query("/stream?a=b&token=s3cret")
    for path in ("/", "/?token=", "/?token=S3cret", "/?token=s3cret2", "/?tokens=s3cret", "/?token=\u00e9"):
        assert not check.in_query(path), path
    cookie = check.cookie()
    assert "HttpOnly" in cookie and "SameSite=Strict" in cookie
    assert check.in_cookies(["x=y", f"other=1; {cookie.split(';')[0]}"])
    for value in ("", "streamsplat_view_8400=wrong", "streamsplat_view_8401=s3cret", "=;;=\x00"):
        assert not check.in_cookies([value]), value
    assert not check.in_cookies([])
    assert not TokenCheck(None, 8400).needed and not TokenCheck(None, 8400).in_query("/?token=None")


GOOD = '{"type": "render", "id": 7, "time": 1.5, "yaw": 0.1, "pitch": 0, "pivot": 2}'


def test_a_good_request() -> None:
    assert parse_request(GOOD) == RenderRequest(7, 1.5, 0.1, 0.0, 2.0)
    assert not parse_request(GOOD).is_canonical
    assert parse_request(GOOD.replace("0.1", "0")).is_canonical


@pytest.mark.parametrize(
    "message",
    [
        b"\x00\x01",
        "",
        "not json",
        "[]",
        "null",
        '"render"',
        "{}",
        "[" * 900,
        GOOD.replace("render", "read"),
        GOOD.replace('"id": 7', '"id": -1'),
        GOOD.replace('"id": 7', '"id": 4294967296'),
        GOOD.replace('"id": 7', '"id": true'),
        GOOD.replace('"id": 7', '"id": 7.0'),
        GOOD.replace('"id": 7, ', ""),
        GOOD.replace('"id": 7', '"id": 7, "path": "/etc/passwd"'),
        GOOD.replace("1.5", "NaN"),
        GOOD.replace("1.5", "Infinity"),
        GOOD.replace("1.5", "1e999"),
        GOOD.replace("1.5", '"1.5"'),
        GOOD.replace("1.5", "null"),
        GOOD.replace("1.5", "false"),
        GOOD.replace("0.1", "1.6"),
        GOOD.replace('"pivot": 2', '"pivot": 1e9'),
    ],
)
def test_a_bad_request(message: str | bytes) -> None:
    with pytest.raises(BadRequest):
        parse_request(message)

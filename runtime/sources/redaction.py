"""Secrets in URLs and GStreamer pipelines: what they are, and texts without them.

Rather too much is hidden than too little: a password may hold any character, also those that end the part of
a URL in which it belongs.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from urllib.parse import unquote

HIDDEN = "***"

# After the scheme a user name up to the first colon, then the password up to the last @. Both may hold /?#@.
_USER = re.compile(r"(?<=://)([^:]*):(.*)@", re.DOTALL)
# Within a pipeline, an address ends at the latest before the next element.
_USER_OF_ELEMENT = re.compile(r"(?<=://)([^:\s]*):((?:(?!\s!\s).)*)@", re.DOTALL)

_NAME = r"([\w.:-]*(?:pass|pwd|token|key|secret|auth|sig|cred|cookie|header)[\w.:-]*|[\w.:-]*pw)"
# In paths as well as in queries: cameras are addressed as rtsp://host/user=a&password=b&channel=1.
_FIELD = re.compile(rf"(?i){_NAME}=([^&]*)", re.DOTALL)
# A value in quotes, whole, however the quotes are placed; one that is never closed goes to the end.
_PROPERTY = re.compile(
    rf"""(?i)(?<![?&\w.:-]){_NAME}\s*=\s*((?:"(?:\\.|[^"\\])*"|'[^']*'|\\.|["'].*\Z|[^\s"'\\])+)""", re.DOTALL
)
# What is left is in an address, which ends at a quote or before the next property or element.
_FIELD_OF_ELEMENT = re.compile(rf"""(?i){_NAME}=((?:(?!\s!\s|\s[\w-]+\s*=)[^&"'])*)""")


def split_url(url: str) -> tuple[str, tuple[str, ...]]:
    """A URL with `***` for its password and for the values of fields that look like credentials, and what was
    hidden."""
    return _split(url, (_USER, _FIELD))


def split_pipeline(pipeline: str) -> tuple[str, tuple[str, ...]]:
    """The same for a GStreamer pipeline: properties, and the addresses in it."""
    return _split(pipeline, (_PROPERTY, _USER_OF_ELEMENT, _FIELD_OF_ELEMENT))


def _split(text: str, patterns: Iterable[re.Pattern[str]]) -> tuple[str, tuple[str, ...]]:
    found: list[str] = []
    for pattern in patterns:
        text = pattern.sub(_hider(pattern, found), text)
    return text, tuple(found)


def _hider(pattern: re.Pattern[str], found: list[str]) -> Callable[[re.Match[str]], str]:
    def hide(match: re.Match[str]) -> str:
        if match[2] != HIDDEN:
            found.append(match[2])
        start, end = match.start(2) - match.start(), match.end(2) - match.start()
        return match[0][:start] + HIDDEN + match[0][end:]

    return hide


def without(text: str, secrets: Iterable[str]) -> str:
    """A message of another program without these values, in the ways in which it may repeat them."""
    forms: set[str] = set()
    for secret in secrets:
        bare = re.sub(r"""\\(.)|["']""", r"\1", secret)
        forms |= {secret, bare, unquote(bare), repr(secret)[1:-1]}
    for form in sorted(forms - {"", HIDDEN}, key=len, reverse=True):
        # A short one only as a word of its own: it may be part of every other.
        pattern = re.escape(form) if len(form) > 3 else rf"(?<!\w){re.escape(form)}(?!\w)"
        text = re.sub(pattern, HIDDEN, text)
    return text

"""Optional packages: refused by name, with the extra that installs them, before a command starts."""

from __future__ import annotations

import importlib.util

from .runtime.errors import EngineError


def require(extra: str, *packages: str) -> None:
    """Raise EngineError where one of `packages`, which the extra `extra` installs, cannot be imported."""
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise EngineError(
            f"This command needs {', '.join(missing)}, which is not installed.",
            f"Install the extra: pip install 'streamsplat-edge[{extra}]'.",
        )

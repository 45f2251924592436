"""What a bundle keeps of its verification: limits, which are read with suspicion, and results.

Two results are kept. The one against the model itself (PyTorch, from the checkpoint) says that the files
compute what the model does. The one against the bundle's own fp32 files says that its other files and plans
compute what those do; it can be had without the checkpoint, and never takes the place of the first.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

from ..runtime.bundle import Bundle
from ..runtime.bundle_schema import STAGE_NAMES
from ..runtime.manifest_fields import as_number, as_object

Limits = dict[str, dict[str, float]]

OWN_FILES = "against_own_files"
"""Field of `verification` with the result against the fp32 files, where there is one against the model."""

_DISTANCES = ("relative_l2", *(f"{stage}_relative_l2" for stage in STAGE_NAMES))
_LARGEST = 1e9


def default_thresholds() -> Limits:
    """Per precision: the largest relative L2 distance of a stage's output, the least PSNR of a rendering.

    fp32: REFERENCE.md section 10, the reference's own float32 is within 9.1e-7 of float64; for `depth` that
    is 1.3e-5 (Depth Anything V2 small, random weights), so it has a bound of its own. fp16 and bf16 round, so
    that outputs are bounded loosely, against garbage, and frames tightly.
    """
    return {
        "fp32": {"relative_l2": 1e-5, "depth_relative_l2": 1e-4, "psnr_db": 60.0},
        "fp16": {"relative_l2": 2e-2, "psnr_db": 45.0},
        "bf16": {"relative_l2": 1e-1, "psnr_db": 30.0},
        "int8": {"psnr_db": 38.0},
        "fp8": {"psnr_db": 38.0},
    }


def _default(precision: str) -> dict[str, float]:
    """Limits of a precision recipe by its first word (`int8-dynamic`: int8); int8's for one not known."""
    known = default_thresholds()
    return known.get(re.split(r"[^a-z0-9]", precision)[0], known["int8"])


def limits(bundle: Bundle) -> Limits:
    """Limits to verify a bundle with: those that it states (`calibrate` keeps the gate of its user there),
    and the defaults for what it does not state.

    Raises:
        BundleError: a field of `verification.thresholds` is not a limit.
    """
    field = "verification.thresholds"
    stated = as_object(bundle.verification.get("thresholds", {}), field)
    found = default_thresholds()
    for precision in bundle.precisions:
        found.setdefault(precision, _default(precision))
    for precision, entries in stated.items():
        where = f"{field}.{precision}"
        # Only what is known, so that a misspelt limit is not one that is never applied.
        names = [name for name in as_object(entries, where) if name in ("psnr_db", *_DISTANCES)]
        for name, value in as_object(entries, where, names).items():
            low = 0.0 if name in _DISTANCES else -_LARGEST
            number = as_number(value, f"{where}.{name}", low, _LARGEST)
            found.setdefault(precision, _default(precision))[name] = number
    return found


def looser(thresholds: Mapping[str, Mapping[str, float]], precisions: Iterable[str]) -> list[str]:
    """Which limits of these precisions let more pass than the defaults, in words."""
    found = []
    for precision in precisions:
        usual = _default(precision)
        for name, value in thresholds.get(precision, {}).items():
            if name == "psnr_db":
                default, more = usual[name], value < usual[name]
            else:
                default = usual.get(name, usual.get("relative_l2", math.inf))
                more = value > default
            if more:
                found.append(f"{precision} {name} {value:g} instead of {default:g}")
    return found


def kept(before: Mapping[str, Any], result: dict[str, Any]) -> dict[str, Any]:
    """The field `verification` of a bundle after a verification.

    Args:
        before: the field until now, of the same files. result: `Report.to_json`.
    """
    if _is_of_model(result):
        own = before.get(OWN_FILES) if _is_of_model(before) else before
        # Limits are kept once; without a result there is nothing else to keep.
        own = {k: v for k, v in own.items() if k != "thresholds"} if isinstance(own, Mapping) else {}
        return {**result, OWN_FILES: own} if "passed" in own else result
    if not _is_of_model(before):
        return result
    own = {key: value for key, value in result.items() if key != "thresholds"}
    return {**before, "thresholds": result["thresholds"], OWN_FILES: own}


def _is_of_model(result: Mapping[str, Any]) -> bool:
    return "passed" in result and str(result.get("reference")).startswith("PyTorch ")

"""Graphs with a free batch axis, checked at a batch that the runtime does not use."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

Arrays = dict[str, np.ndarray]

BATCH = 3
"""Batch size at which free graphs are verified beside 1."""


def run_batch(path: Path, calls: Sequence[tuple[Arrays, Arrays]]) -> tuple[Arrays, Arrays] | None:
    """`BATCH` recorded calls of a stage in one, in ONNX Runtime.

    Args:
        path: ONNX file.
        calls: inputs and outputs of single calls; repeated in turn where there are fewer.

    Returns:
        What comes out, and the outputs of the calls one after the other; None where the batch is not free.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    if isinstance(session.get_inputs()[0].shape[0], int):
        return None
    chosen = [calls[i % len(calls)] for i in range(BATCH)]
    inputs, expected = (
        {name: np.concatenate([call[side][name] for call in chosen]) for name in chosen[0][side]}
        for side in (0, 1)
    )
    names = [value.name for value in session.get_outputs()]
    return dict(zip(names, session.run(names, inputs), strict=True)), expected

"""Import paths of what other folders' tests have."""

from __future__ import annotations

import sys
from pathlib import Path

for folder in ("export", "runtime_cuda", "rasterizer_cuda"):
    sys.path.insert(0, str(Path(__file__).parents[1] / folder))

"""What the runtime asks of an array, whichever memory it is in."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

Shape = tuple[int, ...]


class Array(Protocol):
    """NumPy's on the host, CuPy's on a GPU. Passed on, sliced and compared by shape and dtype; what reads or
    writes its elements knows which of both it has."""

    @property
    def shape(self) -> Shape: ...
    @property
    def ndim(self) -> int: ...
    @property
    def dtype(self) -> np.dtype[Any]: ...
    @property
    def nbytes(self) -> int: ...
    @property
    def flags(self) -> Any: ...
    def __getitem__(self, key: Any, /) -> Any: ...

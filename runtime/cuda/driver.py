"""Which CUDA device is here, asked of the driver library itself: no package is needed, and nothing raises."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

# CUdevice_attribute
_CAPABILITY_MAJOR, _CAPABILITY_MINOR = 75, 76


@dataclass(frozen=True)
class DeviceInfo:
    """A CUDA device as the driver describes it.

    Attributes:
        name: product name. capability: compute capability, like "8.7". free_bytes: of its memory now.
    """

    name: str
    capability: str
    free_bytes: int


def cuda_device(index: int = 0) -> DeviceInfo | None:
    """The device of this ordinal; None where there is no driver or no such device."""
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    handle, context, name = ctypes.c_int(), ctypes.c_void_p(), ctypes.create_string_buffer(256)
    if cuda.cuInit(0) or cuda.cuDeviceGet(ctypes.byref(handle), index):
        return None
    cuda.cuDeviceGetName(name, len(name), handle)
    numbers = []
    for attribute in (_CAPABILITY_MAJOR, _CAPABILITY_MINOR):
        value = ctypes.c_int()
        cuda.cuDeviceGetAttribute(ctypes.byref(value), attribute, handle)
        numbers.append(value.value)
    free, total = ctypes.c_size_t(), ctypes.c_size_t()
    if cuda.cuDevicePrimaryCtxRetain(ctypes.byref(context), handle) == 0:
        cuda.cuCtxPushCurrent_v2(context)
        cuda.cuMemGetInfo_v2(ctypes.byref(free), ctypes.byref(total))
        cuda.cuCtxPopCurrent_v2(ctypes.byref(context))
        cuda.cuDevicePrimaryCtxRelease_v2(handle)
    return DeviceInfo(name.value.decode(errors="replace"), "{}.{}".format(*numbers), free.value)

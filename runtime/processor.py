"""Kinds of CPUs that a quantised file is faster on, and whether this is one of them.

INT8 products gain where the CPU multiplies and adds four bytes in one instruction. Elsewhere the same file
is as slow as fp32 or slower, so that a bundle for many machines has to say where its files pay.
"""

from __future__ import annotations

import functools

from ..machine import cpu_flags

CPU_KINDS: dict[str, tuple[str, ...]] = {
    "x86-vnni": ("avx512_vnni", "avx_vnni"),
    "arm-dotprod": ("asimddp",),
    "any-cpu": (),
}
"""Name to flags, of which one is enough. The first that fits names the CPU, see `kind_of_this_cpu`."""


@functools.cache
def _flags() -> frozenset[str]:
    return cpu_flags()


def is_kind(kind: str) -> bool:
    """Whether this CPU is of a kind; False also where the system does not say what its CPU can do."""
    flags = CPU_KINDS[kind]
    return not flags or not _flags().isdisjoint(flags)


def kind_of_this_cpu() -> str:
    """The most particular kind that this CPU is of."""
    return next(kind for kind in CPU_KINDS if is_kind(kind))

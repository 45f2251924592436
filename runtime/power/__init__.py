"""Power and energy while something runs, for `run` and the benchmarks: `find_rails`, `PowerMeter`."""

from .meter import PowerMeter
from .nvml import NOT_MEASURED, Nvml
from .rails import find_rails

__all__ = ["NOT_MEASURED", "Nvml", "PowerMeter", "find_rails"]

"""Power, throttling and GPUs: read from a made-up /sys and a made-up NVML, and never 0 where nothing is."""

from __future__ import annotations

import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from streamsplat_edge.benchmarks.bench.throttle import ThrottleWatch
from streamsplat_edge.runtime.power import Nvml, PowerMeter, find_rails
from streamsplat_edge.runtime.power.rails import jetson_rails


class FakeNvml:
    """As much of `pynvml` as is used, of one GPU at 200 W that counts 20 J between two readings."""

    class NVMLError(Exception):
        pass

    NVML_CLOCK_SM, NVML_CLOCK_MEM, NVML_TEMPERATURE_GPU = 1, 2, 0
    nvmlClocksEventReasonSwPowerCap = 0x4
    nvmlClocksEventReasonHwSlowdown = 0x8
    nvmlClocksEventReasonSwThermalSlowdown = 0x20
    nvmlClocksEventReasonHwThermalSlowdown = 0x40
    nvmlClocksEventReasonHwPowerBrakeSlowdown = 0x80

    def __init__(self, mask: int = 0x1, counter: bool = True, count: int = 1) -> None:
        self.mask, self.counter, self.count, self.energy = mask, counter, count, 0

    def nvmlInit(self) -> None: ...
    def nvmlSystemGetDriverVersion(self) -> bytes:
        return b"580.1"

    def nvmlDeviceGetCount(self) -> int:
        return self.count

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        return index

    def nvmlDeviceGetName(self, handle: int) -> str:
        return "Fake"

    def nvmlDeviceGetPowerUsage(self, handle: int) -> int:
        return 200_000

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: int) -> int:
        if not self.counter:
            raise self.NVMLError("Not Supported")
        self.energy += 20_000
        return self.energy

    def nvmlDeviceGetMemoryInfo(self, handle: int) -> SimpleNamespace:
        return SimpleNamespace(used=3 * 2**20)

    def nvmlDeviceGetCurrentClocksEventReasons(self, handle: int) -> int:
        return self.mask

    def nvmlDeviceGetComputeRunningProcesses(self, handle: int) -> list[SimpleNamespace]:
        return [SimpleNamespace(pid=1)]

    def nvmlDeviceGetEnforcedPowerLimit(self, handle: int) -> int:
        return 700_000

    def nvmlDeviceGetClockInfo(self, handle: int, kind: int) -> int:
        return 1980 if kind == self.NVML_CLOCK_SM else 2619

    def nvmlDeviceGetTemperature(self, handle: int, kind: int) -> int:
        raise self.NVMLError("Unknown Error")


def ina(root: Path, chip: int, *channels: tuple[str, int, int]) -> Path:
    """A chip with channels of label, millivolts and milliamperes."""
    folder = root / "class" / "hwmon" / f"hwmon{chip}"
    folder.mkdir(parents=True)
    (folder / "name").write_text("ina3221\n")
    for number, (label, volts, amperes) in enumerate(channels, 1):
        for name, value in (("in%d_label", label), ("in%d_input", volts), ("curr%d_input", amperes)):
            (folder / (name % number)).write_text(f"{value}\n")
    return folder


def measured(rails: list[object], problem: str = "", frames: int = 10) -> dict[str, object]:
    with PowerMeter(rails, problem, interval=0.005) as meter:  # type: ignore[arg-type]
        time.sleep(0.05)
    return meter.result(frames)


def test_rails_of_a_module_with_a_total(tmp_path: Path) -> None:
    folder = ina(tmp_path, 1, ("VDD_IN", 5000, 2000), ("VDD_CPU_GPU_CV", 5000, 800), ("NC", 0, 0))
    (tmp_path / "class" / "hwmon" / "hwmon0").mkdir()
    (tmp_path / "class" / "hwmon" / "hwmon0" / "name").write_text("nvme\n")
    rails = jetson_rails(tmp_path)
    assert [(rail.name, rail.watts()) for rail in rails] == [("VDD_IN", 10.0), ("VDD_CPU_GPU_CV", 4.0)]
    result = measured(rails)
    assert result["counted"] == ["VDD_IN"]  # the other rail is a part of it
    assert result["mean_w"] == pytest.approx(10.0)
    whole = result["rails"]["VDD_IN"]  # type: ignore[index]
    assert result["joules_per_frame"] == pytest.approx(whole["joules"] / 10) and whole["joules"] > 0.3
    (folder / "in2_enable").write_text("0\n")
    assert [rail.name for rail in jetson_rails(tmp_path)] == ["VDD_IN"]


def test_rails_without_a_total_are_added_up(tmp_path: Path) -> None:
    ina(tmp_path, 1, ("VDD_GPU_SOC", 12000, 500), ("VDD_CPU_CV", 12000, 250))
    ina(tmp_path, 2, ("VIN_SYS_5V0", 5000, 1000))
    result = measured(jetson_rails(tmp_path))
    assert result["mean_w"] == pytest.approx(6 + 3 + 5)


def test_what_cannot_be_read_is_not_measured(tmp_path: Path) -> None:
    folder = ina(tmp_path, 1, ("VDD_IN", 5000, 2000))
    rails = jetson_rails(tmp_path)
    (folder / "curr1_input").write_text("broken\n")
    assert rails[0].watts() is None
    result = measured(rails)
    assert result["mean_w"] == result["joules_per_frame"] == "not measured"
    assert result["reason"] == "no rail answered twice"


def test_no_rail_at_all_says_why(tmp_path: Path) -> None:
    nvml = Nvml(FakeNvml(count=0))
    rails, problem = find_rails(nvml, tmp_path)
    assert rails == [] and "there is no GPU" in problem and "INA3221" in problem
    assert measured([], problem) == {
        **dict.fromkeys(("mean_w", "max_w", "joules"), "not measured"),
        "joules_per_frame": "not measured",
        "reason": problem,
    }


def test_a_gpu_with_an_energy_counter() -> None:
    (gpu,) = Nvml(FakeNvml()).gpus
    result = measured([gpu], frames=4)
    (rail,) = result["rails"].values()  # type: ignore[attr-defined]
    assert rail["joules"] == pytest.approx(20) and rail["method"] == "energy counter"
    assert rail["joules_per_frame"] == pytest.approx(5) and rail["max_w"] == 200


def test_a_gpu_without_an_energy_counter() -> None:
    (gpu,) = Nvml(FakeNvml(counter=False)).gpus
    result = measured([gpu])
    (rail,) = result["rails"].values()  # type: ignore[attr-defined]
    assert "trapezia" in rail["method"] and result["mean_w"] == pytest.approx(200)


def test_state_of_a_gpu_says_what_it_does_not_know() -> None:
    (gpu,) = Nvml(FakeNvml(mask=0x44)).gpus
    state = gpu.state()
    assert state["sm_mhz"] == 1980 and state["other_processes"] == 1 and state["power_limit_w"] == 700
    assert state["temperature_c"] == "not measured"
    assert state["throttling"] == ["power limit", "temperature (hardware)"]
    assert gpu.memory_mib() == 3


def test_throttling_is_noticed(tmp_path: Path) -> None:
    quota = tmp_path / "cpu.stat"
    quota.write_text("usage_usec 5\nnr_throttled 7\n")
    core = tmp_path / "devices/system/cpu/cpu0/thermal_throttle/core_throttle_count"
    core.parent.mkdir(parents=True)
    core.write_text("3\n")
    cooling = tmp_path / "class/thermal/cooling_device0"
    cooling.mkdir(parents=True)
    (cooling / "type").write_text("pwm-fan\n")
    (cooling / "cur_state").write_text("2\n")
    nvml = Nvml(FakeNvml())
    watch = ThrottleWatch(nvml, tmp_path, quota)
    assert watch.reasons() == []  # counters of before, a fan, and a GPU that idles
    core.write_text("4\n")
    assert watch.reasons() == ["the CPU was too hot (core)"]
    quota.write_text("usage_usec 5\nnr_throttled 8\n")
    (cooling / "type").write_text("cpufreq-cpu0\n")
    reasons = ThrottleWatch(Nvml(FakeNvml(mask=0x20)), tmp_path, quota).reasons()
    assert reasons == ["GPU 0 (Fake), GPU alone: temperature (driver)", "cpufreq-cpu0 lowers clocks"]
    assert "the control group's CPU quota was used up" in watch.reasons()


class Scripted:
    """A rail that answers what it was told to, in order."""

    def __init__(self, name: str, *watts: float | None) -> None:
        self.name, self._watts = name, iter(watts)

    def watts(self) -> float | None:
        return next(self._watts)

    def joules(self) -> float | None:
        return None


def read(rails: list[Scripted], at: list[float], **options: bool) -> PowerMeter:
    """A meter that has read the rails at these seconds."""
    now = 0.0
    meter = PowerMeter(rails, clock=lambda: now, **options)
    for now in at:  # noqa: B007 - the clock reads it
        meter.read()
    return meter


def test_energy_is_the_area_under_the_readings() -> None:
    result = read([Scripted("A", 2.0, 4.0, 4.0)], [0.0, 1.0, 3.0]).result(frames=22)
    assert result["joules"] == pytest.approx(3 + 8) and result["mean_w"] == pytest.approx(11 / 3)
    assert result["joules_per_frame"] == pytest.approx(0.5) and result["max_w"] == 4
    assert "samples_w" not in result["rails"]["A"] and result["rails"]["A"]["readings"] == 3
    kept = read([Scripted("A", 2.0, 4.0, 4.0)], [0.0, 1.0, 3.0], keep=True).result(0)
    assert kept["rails"]["A"]["samples_w"] == [2, 4, 4] and kept["joules_per_frame"] is None


def test_the_highest_total_is_of_one_moment() -> None:
    result = read([Scripted("A", 5.0, 1.0), Scripted("B", 2.0, 4.0)], [0.0, 1.0]).result(1)
    assert result["max_w"] == 7  # and not 5 + 4
    assert result["rails"]["B"]["max_w"] == 4
    part = read([Scripted("A", 5.0, None, 1.0), Scripted("B", 2.0, 9.0, 4.0)], [0.0, 1.0, 2.0]).result(1)
    assert part["max_w"] == 7 and part["rails"]["B"]["max_w"] == 9


def test_a_total_without_the_rail_that_it_is_made_of() -> None:
    """The whole module's rail falls silent: the parts are added up, and nobody claims a highest total."""
    silent = Scripted("VDD_IN", None, None), Scripted("CPU", 2.0, 2.0), Scripted("GPU", 3.0, 3.0)
    result = read(list(silent), [0.0, 1.0]).result(1)
    assert result["counted"] == ["CPU", "GPU"] and result["mean_w"] == pytest.approx(5)
    assert result["max_w"] == "not measured"

"""What a calibration is asked for, and what comes out of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ..runtime.errors import InputError
from .cpu import CpuChoice
from .forms import Clips
from .frames import Score
from .plans import PlanTimings
from .ranges import FORMATS, METHODS, check_percentile
from .recipe import Decision, Recipe, to_json
from .sensitivity import Sensitivity

TARGETS = ("all", "cpu", "tensorrt")
_LARGEST_PSNR = 1000.0  # of frames that are not equal; the manifest holds no infinity


@dataclass(frozen=True)
class Options:
    """What `calibrate` is asked for.

    Attributes:
        precision: `int8` or `fp8`. method, percentile: see `ranges`.
        target: what files are made for: `all`, `cpu` (ONNX Runtime and OpenVINO) or `tensorrt`.
        samples, gate_samples: pairs of key frames to calibrate and to measure on.
        min_psnr: dB that every rendered frame must have against fp32.
        recipe: which layers are quantised.
        sensitivity: measure every layer by itself.
        smooth: strength of SmoothQuant, 0 to 1; None leaves activations as they are.
        slower: keep a quantised file although it is slower, for CPUs and on the GPU here.
        force_quality: save a bundle below `min_psnr`.
    """

    precision: str = "int8"
    target: str = "all"
    method: str = "mse"
    percentile: float = 99.99
    samples: int = 256
    gate_samples: int = 16
    min_psnr: float = 38.0
    recipe: Recipe = field(default_factory=Recipe)
    smooth: float | None = None
    sensitivity: bool = True
    slower: bool = False
    force_quality: bool = False

    def check(self) -> None:
        """Raise InputError for what cannot be meant."""
        if self.precision not in FORMATS:
            raise InputError(
                f"There is no quantised precision {self.precision!r}.", f"Use {' or '.join(FORMATS)}."
            )
        if self.target not in TARGETS:
            raise InputError(f"There is no target {self.target!r}.", f"Use one of {', '.join(TARGETS)}.")
        if self.target == "cpu" and self.precision == "fp8":
            raise InputError("FP8 is for TensorRT alone.", "For CPUs use --precision int8.")
        if self.target == "cpu" and self.force_quality:
            raise InputError(
                "Saving below the gate is for TensorRT's files alone: CPUs keep fp32 where INT8 fails.",
                "Lower --min-psnr instead of --force-quality.",
            )
        if self.method not in METHODS:
            raise InputError(f"There is no method {self.method!r}.", f"Use one of {', '.join(METHODS)}.")
        check_percentile(self.percentile)
        if not abs(self.min_psnr) <= _LARGEST_PSNR:
            raise InputError(
                f"The least PSNR is {self.min_psnr}.", "Use a number of dB: 38; 45 cannot be seen."
            )
        if self.smooth is not None and not 0 < self.smooth < 1:
            raise InputError(
                f"The smoothing strength is {self.smooth}.", "Use a number between 0 and 1: 0.5."
            )
        for name in ("samples", "gate_samples"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}.", "Use 1 or more.")


@dataclass
class Result:
    """What was done and measured.

    Attributes:
        decisions: of every layer, after the gate. sensitivities: most sensitive first.
        given_back: layers that the gate returned to floating point.
        score: of the TensorRT files, None where there are none. cpu: by engine, what was chosen for the CPU.
        plans: what TensorRT's files were timed at; None where there are none.
        samples, gate_samples: pairs used. ranges: per stage and node, the clips.
        smoothed: layers whose inputs were smoothed.
    """

    options: Options
    decisions: list[Decision]
    score: Score | None
    samples: int
    gate_samples: int
    sensitivities: list[Sensitivity] = field(default_factory=list)
    given_back: list[tuple[str, str]] = field(default_factory=list)
    cpu: list[CpuChoice] = field(default_factory=list)
    plans: PlanTimings | None = None
    ranges: dict[str, Clips] = field(default_factory=dict)
    smoothed: list[str] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        return self.score is None or self.score.worst >= self.options.min_psnr

    def to_json(self) -> dict[str, Any]:
        """For the manifest and `--json`."""
        options = self.options
        return {
            "precision": options.precision,
            "target": options.target,
            "method": options.method,
            "percentile": options.percentile,
            "samples": self.samples,
            "smoothed": self.smoothed,
            "gate": {
                "min_psnr_db": options.min_psnr,
                "samples": self.gate_samples,
                "passed": self.passed,
                "psnr_db": None if self.score is None else self.score.to_json(),
                "given_back": [f"{stage}:{node}" for stage, node in self.given_back],
            },
            "recipe": to_json(self.decisions),
            "ranges": {s: {n: list(c) for n, c in clips.items()} for s, clips in self.ranges.items()},
            "sensitivity": [
                {"stage": s.stage, "node": s.node, **s.score.to_json()} for s in self.sensitivities
            ],
            "plans": None if self.plans is None else self.plans.to_json(),
            "cpu": [choice.to_json() for choice in self.cpu],
        }

"""Which layers are quantised: rules as data (`rules.json`), each with its reason, overridable by the user.

The first rule that fits a layer decides. `--keep NODE` puts a rule before all others, `--recipe FILE` the
rules of a file before the default ones. What was decided for every layer is stored in the bundle.
"""

from __future__ import annotations

import difflib
import fnmatch
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..runtime.errors import InputError
from .layers import Layer

FORMAT, VERSION = "streamsplat-quantisation-recipe", 1
KINDS = {
    "MatMul": "linear", "Gemm": "linear", "Conv": "convolution", "ConvTranspose": "convolution",
}  # fmt: skip
"""Operator -> kind in rules; a product of two activations is a `product`."""
_DEFAULT = Path(__file__).with_name("rules.json")
_PRECISIONS = ("int8", "fp8")


@dataclass(frozen=True)
class Rule:
    """One line of a recipe; a field that is left out fits everything.

    Attributes:
        quantise, reason: the decision, and why.
        stages, kinds, precisions: where it applies; `*` among the stages fits all.
        nodes: pattern of node names, with * and ?.
        fewer_channels_than: fits weights that read fewer input channels than that.
    """

    quantise: bool
    reason: str
    stages: tuple[str, ...] = ("*",)
    nodes: str = "*"
    kinds: tuple[str, ...] = ("linear", "convolution", "product")
    precisions: tuple[str, ...] = _PRECISIONS
    fewer_channels_than: int = 0

    def fits(self, stage: str, layer: Layer, precision: str) -> bool:
        return (
            ("*" in self.stages or stage in self.stages)
            and kind_of(layer) in self.kinds
            and precision in self.precisions
            and fnmatch.fnmatchcase(layer.node, self.nodes)
            and (not self.fewer_channels_than or _channels(layer) < self.fewer_channels_than)
        )


@dataclass(frozen=True)
class Decision:
    """What becomes of one layer of one stage, and why."""

    stage: str
    layer: Layer
    quantise: bool
    reason: str


@dataclass(frozen=True)
class Recipe:
    """Rules in the order in which they are asked."""

    rules: tuple[Rule, ...] = field(default_factory=lambda: _read(_DEFAULT))

    @classmethod
    def load(cls, path: Path | None = None, keep: Sequence[str] = ()) -> Recipe:
        """The default rules, behind those of a file and of `keep`.

        Args:
            path: JSON like `rules.json`.
            keep: node names or patterns, as `STAGE:NODE` or `NODE`, that stay in floating point.

        Raises:
            InputError: the file is no recipe.
        """
        own = () if path is None else _read(path)
        kept = []
        for text in keep:
            stage, _, node = text.rpartition(":")
            kept.append(Rule(False, f"--keep {text}", (stage or "*",), node))
        return cls((*kept, *own, *_read(_DEFAULT)))

    def decide(self, layers: Mapping[str, Sequence[Layer]], precision: str) -> list[Decision]:
        """One decision per layer.

        Args:
            layers: of each stage.
            precision: `int8` or `fp8`.

        Raises:
            InputError: a rule of the user's names a stage or node that does not exist.
        """
        self._check_names(layers)
        decisions = []
        for stage, found in layers.items():
            for layer in found:
                rule = next((r for r in self.rules if r.fits(stage, layer, precision)), None)
                chosen = rule or Rule(False, "no rule fits")
                decisions.append(Decision(stage, layer, chosen.quantise, chosen.reason))
        return decisions

    def _check_names(self, layers: Mapping[str, Sequence[Layer]]) -> None:
        """The default rules may name stages and nodes that a model lacks; those of the user may not."""
        for rule in self.rules[: -len(_read(_DEFAULT))]:
            stages = [s for s in layers if "*" in rule.stages or s in rule.stages]
            unknown = [s for s in rule.stages if s != "*" and s not in layers]
            if unknown:
                raise InputError(
                    f"The recipe names the stage {unknown[0]}, which the bundle does not have.",
                    f"It has {', '.join(layers)}.",
                )
            names = [layer.node for stage in stages for layer in layers[stage]]
            if not any(fnmatch.fnmatchcase(name, rule.nodes) for name in names):
                close = difflib.get_close_matches(rule.nodes, names, n=3, cutoff=0.4)
                raise InputError(
                    f"The recipe names the node {rule.nodes}, but no layer that multiplies is called so.",
                    f"Similar: {', '.join(close)}."
                    if close
                    else "`calibrate --list-layers` prints all names.",
                )


def kind_of(layer: Layer) -> str:
    """`linear`, `convolution` or `product`."""
    return "product" if layer.is_product else KINDS[layer.operator]


def keep_also(decisions: Iterable[Decision], nodes: Iterable[tuple[str, str]], reason: str) -> list[Decision]:
    """The decisions with these (stage, node) in floating point as well."""
    given = set(nodes)
    return [
        replace(d, quantise=False, reason=reason) if (d.stage, d.layer.node) in given else d
        for d in decisions
    ]


def to_json(decisions: Iterable[Decision]) -> dict[str, Any]:
    """For the bundle: per stage the layers that are quantised, and those that are not with the reason."""
    stages: dict[str, Any] = {}
    for d in decisions:
        entry = stages.setdefault(d.stage, {"quantised": [], "kept": {}})
        if d.quantise:
            entry["quantised"].append(d.layer.node)
        else:
            entry["kept"][d.layer.node] = d.reason
    return stages


def _channels(layer: Layer) -> int:
    """Input channels that one output sees (per group of a convolution)."""
    if layer.is_product:
        return 1 << 30
    if layer.operator in ("Conv",):
        return layer.shape[1]
    return layer.shape[1 - layer.axis]


def _read(path: Path) -> tuple[Rule, ...]:
    def wrong(problem: str) -> InputError:
        return InputError(f"{path} {problem}.", f"Write it like {_DEFAULT}; docs/quantise.md explains it.")

    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise wrong(f"cannot be read as JSON ({error})") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise wrong(f"is no recipe: its format is not {FORMAT}")
    if content.get("version") != VERSION or not isinstance(content.get("rules"), list):
        raise wrong(f"is not of version {VERSION}, or has no list of rules")
    return tuple(_rule(entry, f"rule {i + 1}", wrong) for i, entry in enumerate(content["rules"]))


def _rule(entry: Any, where: str, wrong: Any) -> Rule:
    allowed = Rule.__dataclass_fields__
    if not isinstance(entry, dict) or set(entry) - set(allowed):
        raise wrong(f"has a {where} that is not an object of {', '.join(allowed)}")
    if not isinstance(entry.get("quantise"), bool) or not isinstance(entry.get("reason"), str):
        raise wrong(f"has a {where} without `quantise` (true or false) and `reason`")
    values = dict(entry)
    for name, known in (
        ("stages", None),
        ("kinds", (*KINDS.values(), "product")),
        ("precisions", _PRECISIONS),
    ):
        if name not in values:
            continue
        items = values[name]
        if not isinstance(items, list) or not items or not all(isinstance(item, str) for item in items):
            raise wrong(f"has a {where} whose `{name}` is not a list of words")
        if known is not None and set(items) - set(known):
            raise wrong(f"has a {where} whose `{name}` are not among {', '.join(dict.fromkeys(known))}")
        values[name] = tuple(items)
    if not isinstance(values.get("nodes", ""), str):
        raise wrong(f"has a {where} whose `nodes` is not a pattern")
    limit = values.get("fewer_channels_than", 0)
    if isinstance(limit, bool) or not isinstance(limit, int):
        raise wrong(f"has a {where} whose `fewer_channels_than` is not a whole number")
    return Rule(**values)

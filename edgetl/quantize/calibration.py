"""What calibration found and decided: a JSON record that says what it belongs to, and is refused elsewhere."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from edgetl.canonical import canonical_json
from edgetl.errors import QuantizationError
from edgetl.quantize.graph import Graph
from edgetl.quantize.rewrite import QuantizedLayer, Range
from edgetl.quantize.sensitivity import LayerCost

__all__ = ["PROCEDURE", "Calibration", "Decisions", "Prepared", "Repairs", "decisions_from_file"]

FORMAT_VERSION = 3
# Of the procedure: a change that gives other numbers for the same pictures gets another one.
PROCEDURE = 4


@dataclass(frozen=True)
class Repairs:
    """What helped one target, and is therefore applied.

    Attributes:
        compensate: Weights are rounded such that errors cancel.
        correct: What biases take up: ``none``, ``analytic`` (the mean error of the weights) or ``empirical`` (and that
            of the activations).
    """

    compensate: bool = False
    correct: str = "none"


@dataclass(frozen=True)
class Decisions:
    """What was chosen; with the pictures, it gives the same graphs again.

    Attributes:
        ranges: (low, high) by tensor.
        observed: Exact extremes by tensor.
        methods: Threshold method by tensor.
        equalize: Strength of the equalization, 0 for none.
        repairs: By target.
        spared: Layers left in float for their cost, by target.
        ranking: What each layer costs, the most expensive first; empty where nobody asked.
        trials: What was tried: ``{"target", "what"}`` and the fields of `edgetl.quantize.judge.Score` each.
    """

    ranges: Mapping[str, Range]
    observed: Mapping[str, Range] = field(repr=False)
    methods: Mapping[str, str] = field(repr=False)
    equalize: float = 0.0
    repairs: Mapping[str, Repairs] = field(default_factory=dict)
    spared: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    ranking: tuple[LayerCost, ...] = ()
    trials: tuple[Mapping[str, Any], ...] = field(default=(), repr=False)

    def to_dict(self) -> dict[str, Any]:
        """Returns the JSON form."""
        return {
            "equalize": self.equalize,
            "repairs": {target: asdict(repairs) for target, repairs in self.repairs.items()},
            "spared": {target: list(names) for target, names in self.spared.items()},
            "layers": [cost.to_dict() for cost in self.ranking],
            "trials": [dict(trial) for trial in self.trials],
            "tensors": {
                name: {"low": low, "high": high, "observed": list(self.observed[name]), "method": self.methods[name]}
                for name, (low, high) in sorted(self.ranges.items())
            },
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Decisions:
        """Reads the JSON form.

        Raises:
            KeyError, TypeError, ValueError: It is malformed.
        """
        tensors = data["tensors"]
        return cls(
            {name: (float(t["low"]), float(t["high"])) for name, t in tensors.items()},
            {name: (float(t["observed"][0]), float(t["observed"][1])) for name, t in tensors.items()},
            {name: str(t["method"]) for name, t in tensors.items()},
            float(data["equalize"]),
            {target: Repairs(bool(r["compensate"]), str(r["correct"])) for target, r in data["repairs"].items()},
            {target: tuple(map(str, names)) for target, names in data["spared"].items()},
            tuple(LayerCost(**cost) for cost in data["layers"]),
            tuple(data["trials"]),
        )


@dataclass(frozen=True)
class Prepared:
    """What decisions come to for one network: made anew from the pictures, never stored.

    Attributes:
        graph: FP32, equalized where that was decided.
        layers: Repaired layers by target and node.
    """

    graph: Graph
    layers: Mapping[str, Mapping[str, QuantizedLayer]]


@dataclass(frozen=True)
class Calibration:
    """Good for every target of one graph.

    Attributes:
        keyed_by: What the decisions depend on: graph, pictures, preprocessing, settings, procedure.
        pictures: How many were looked at, those reserved for judging included.
        judged: How many of them were reserved for judging.
        decisions: What was chosen.
        prepared: What write_int8 works with.
    """

    keyed_by: Mapping[str, Any]
    pictures: int
    judged: int
    decisions: Decisions
    prepared: Prepared = field(repr=False, compare=False)

    def to_dict(self) -> dict[str, Any]:
        """Returns the JSON form, which `decisions_from_file` reads."""
        decisions = self.decisions.to_dict()
        return {
            "format_version": FORMAT_VERSION,
            "key": _digest(self.keyed_by),
            "keyed_by": dict(self.keyed_by),
            "pictures": self.pictures,
            "judged": self.judged,
            "decisions_sha256": _digest(decisions),
            "decisions": decisions,
        }


def _digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(canonical_json(dict(content))).hexdigest()


def decisions_from_file(path: Path, keyed_by: Mapping[str, Any]) -> Decisions:
    """Reads a calibration.json for use with the very things it was made from.

    Raises:
        QuantizationError: It is absent, malformed, or was made from something else; says what differs.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if data.get("format_version") != FORMAT_VERSION:
            raise QuantizationError(
                f"{path}: has format {data.get('format_version')}, this edgetl reads {FORMAT_VERSION}"
            )
        made_from = dict(data["keyed_by"])
        differs = [name for name in keyed_by if made_from.get(name) != keyed_by[name]]
        if differs or _digest(made_from) != data["key"]:
            what = ", ".join(differs) or "its own key"
            raise QuantizationError(f"{path}: belongs to something else ({what} differs); calibrate again without it")
        if _digest(data["decisions"]) != data["decisions_sha256"]:
            raise QuantizationError(f"{path}: was changed by hand; calibrate again without it")
        return Decisions.from_dict(data["decisions"])
    except OSError as error:
        raise QuantizationError(f"{path}: cannot be read ({error.strerror})") from None
    except (ValueError, TypeError, KeyError, AttributeError, IndexError, RecursionError) as error:
        raise QuantizationError(f"{path}: is no calibration.json ({type(error).__name__}: {str(error)[:80]})") from None

"""What goes to a board: wheels, bundles, pictures; and how its result is read at home."""

from __future__ import annotations

import csv
import io
import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgetl.bench.connection import printable
from edgetl.bench.result import Result
from edgetl.bench.stage import Contender
from edgetl.bench.wheelhouse import own_wheel, wheels_for
from edgetl.bundle import open_bundle
from edgetl.errors import EngineError

__all__ = ["RESULT", "Job", "Luggage", "pack"]

RESULT = "result.json"


@dataclass(frozen=True)
class Job:
    """What every board shall do.

    Attributes:
        contenders: Bundles with their pictures.
        options: Of ``edgetl bench``, beside bundles, data and outputs.
        reference: What ``--against`` names, or None.
        wheelhouse: Folder of wheels that fit the boards; None downloads them here.
    """

    contenders: Sequence[Contender]
    options: Sequence[str]
    reference: Contender | None = None
    wheelhouse: Path | None = None


@dataclass
class Luggage:
    """Everything one board needs.

    Attributes:
        files: Content or path here, and name there.
        wheels: Names there, in the order they are unpacked.
        command: Arguments for the board's Python.
        names: What things there are called here.
    """

    files: list[tuple[bytes | Path, str]] = field(default_factory=list)
    wheels: list[str] = field(default_factory=list)
    command: list[str] = field(default_factory=list)
    names: dict[str, str] = field(default_factory=dict)

    @property
    def sizes(self) -> Iterator[int]:
        """Bytes of each file."""
        for data, _ in self.files:
            yield len(data) if isinstance(data, bytes) else data.stat().st_size

    def at_home(self, data: bytes, board: str, folder: str) -> dict[str, Any]:
        """Returns the result with the names that things have here: of bundles, of data and of pictures."""

        def named(value: Any) -> Any:
            if isinstance(value, dict):
                return {key: named(item) for key, item in value.items()}
            if isinstance(value, list):
                return [named(item) for item in value] if value and not isinstance(value[0], int | float) else value
            return self._name(value, folder) if isinstance(value, str) else value

        try:
            result = named(json.loads(data))
            Result.from_dict(result)
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            raise EngineError("the board's result is damaged; run again") from None
        return {**result, "device": board}

    def _name(self, text: str, folder: str) -> str:
        inside = text.removeprefix(f"{folder}/")
        first, space, rest = inside.partition(" ")  # "BUNDLE variant" of a gate's check
        if inside in self.names:
            return self.names[inside]
        if first.endswith(".edgetl") and first in self.names:
            return f"{self.names[first]}{space}{printable(rest)}"
        return printable(text)


def pack(job: Job, facts: Mapping[str, Any]) -> Luggage:
    """Lays out the board's folder: wheels, bundles, and a table of pictures for each data set."""
    luggage = Luggage()
    with tempfile.TemporaryDirectory() as folder:
        own = own_wheel(Path(folder))
        luggage.files.append((own.read_bytes(), f"wheels/{own.name}"))
    luggage.files += [(wheel, f"wheels/{wheel.name}") for wheel in wheels_for(facts, job.wheelhouse)]
    luggage.wheels = [name for _, name in luggage.files][::-1]  # ours last, whatever else brings an edgetl
    tables: dict[tuple[str, str], str] = {}
    arguments = []
    for number, contender in enumerate(job.contenders):
        there = _bundle(luggage, contender, number)
        table = _table(luggage, contender, tables)
        arguments.append(there if table is None else f"{there}={table}")
    data = [] if not tables else ["--split", "all", "--allow-leakage"]
    against = []
    if job.reference is not None:  # it is judged on the pictures of the bundle
        against = ["--against", _bundle(luggage, job.reference, len(job.contenders))]
    luggage.command = [
        "-m", "edgetl.cli.main", "bench", *arguments, *data, *against, *job.options, "--quiet", "--json", RESULT,
    ]  # fmt: skip
    return luggage


def _bundle(luggage: Luggage, contender: Contender, number: int) -> str:
    """Adds a bundle's files, and returns what it is called there."""
    there = f"bundle{number}.edgetl"
    bundle = open_bundle(contender.path)
    luggage.files += [(bundle.root / name, f"{there}/{name}") for name in ("manifest.json", *bundle.manifest["files"])]
    luggage.names[there] = contender.name
    return there


def _table(luggage: Luggage, contender: Contender, tables: dict[tuple[str, str], str]) -> str | None:
    """Adds the pictures of a data set once, as a table ``path,label``."""
    if contender.dataset is None:
        return None
    key = (contender.dataset.digest, contender.split)
    if key not in tables:
        folder = f"data{len(tables)}"
        tables[key] = f"{folder}.csv"
        text = io.StringIO()
        writer = csv.writer(text)
        writer.writerow(("path", "label"))
        for number, item in enumerate(contender.items):
            name = f"{folder}/{number:06}{item.path.suffix.lower()}"
            luggage.files.append((item.path, name))
            luggage.names[name] = str(item.path)
            writer.writerow((name, contender.dataset.classes[item.label]))
        luggage.files.append((text.getvalue().encode(), tables[key]))
        luggage.names[tables[key]] = contender.dataset.root
    return tables[key]

"""A run's folder: what is written while it trains, and what makes it complete."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from edgetl.artifacts import Checkpoint, sha256_of, write_json, write_text
from edgetl.backbones import load_network
from edgetl.dataset import Dataset, Source
from edgetl.errors import CheckpointError, InputError
from edgetl.finetune.config import FinetuneConfig
from edgetl.spec import ModelSpec

__all__ = ["RunFolder", "open_run", "read_config", "read_settings"]

Rows = list[dict[str, float | int | str]]

_FILES = frozenset(
    {
        "checkpoint.safetensors", "source.safetensors", "spec.json", "config.yaml", "history.csv", "metrics.json",
        "stability.csv", "tensorboard", "wandb", "report.html", "last.ckpt", ".last.ckpt.new",
    }
)  # fmt: skip
_DRIFT = "drift/"
_RESOLVED = "resolved"  # in config.yaml: what settings like "auto" came to
_SHA256 = "_sha256"  # of a file that a setting names


@dataclass(frozen=True)
class RunFolder:
    """Paths of one run.

    ``metrics.json`` is written last: a folder that has it is complete.
    """

    root: Path

    @property
    def checkpoint(self) -> Path:
        """The trained network."""
        return self.root / "checkpoint.safetensors"

    @property
    def source(self) -> Path:
        """The pretrained network with its own head."""
        return self.root / "source.safetensors"

    @property
    def last(self) -> Path:
        """What training is resumed from."""
        return self.root / "last.ckpt"

    @property
    def config(self) -> Path:
        """The resolved settings."""
        return self.root / "config.yaml"

    @property
    def metrics(self) -> Path:
        """The figures, written last."""
        return self.root / "metrics.json"

    @property
    def history(self) -> Path:
        """What each epoch gave."""
        return self.root / "history.csv"

    @property
    def stability(self) -> Path:
        """How far each block had moved after each epoch."""
        return self.root / "stability.csv"

    @property
    def report(self) -> Path:
        """The run for people; written where the extra is installed."""
        return self.root / "report.html"

    @property
    def _replaced(self) -> Path:
        """Where a run that ``--force`` replaces lies until the new one is complete."""
        return self.root.with_name(f".{self.root.name}.replaced")

    def check_free(self, *, resume: bool, force: bool) -> None:
        """Says early what `begin` would refuse, whatever settings and pictures are.

        Raises:
            InputError: The folder is in the way.
            CheckpointError: There is nothing to resume.
        """
        if resume:
            if self.metrics.exists():
                raise CheckpointError(
                    f"{self.root}: this run is complete, there is nothing to resume; use it, or --force"
                )
            read_config(self.config)
            return
        if self.root.exists() and not self.root.is_dir():
            raise InputError(f"{self.root}: is a file; --out names the run's folder")
        if not self.root.exists() or all(_is_stray(path.name) for path in self.root.iterdir()):
            return
        if not force:
            hint = "choose another --out or give --force"
            if self.config.exists() and not self.metrics.exists():
                hint = "it is an interrupted run: give --resume to go on, or --force to begin anew"
            raise InputError(f"{self.root}: exists already; {hint}")
        names = sorted(path.name for path in self.root.iterdir())
        strange = next((name for name in names if name not in _FILES and not _is_stray(name)), None)
        if strange or not self.config.exists():
            holds = f'holds "{strange}"' if strange else "holds no config.yaml"
            raise InputError(
                f"{self.root}: {holds}, so it is not just a run, and --force would delete somebody's files; "
                "choose another --out"
            )

    def begin(self, config: FinetuneConfig, dataset: Dataset, *, resume: bool, force: bool) -> None:
        """Makes the folder, or checks that an interrupted run in it goes on with the same settings.

        A complete run that is replaced stays aside until `finish`; `discard` brings it back.

        Raises:
            InputError: The folder is in the way.
            CheckpointError: There is nothing to resume, or settings or pictures differ.
        """
        self.check_free(resume=resume, force=force)
        if resume:
            self.check_same(config, dataset.digest)
            for path in self.root.iterdir():
                if _is_stray(path.name):
                    path.unlink()
            return
        if self.metrics.exists():
            shutil.rmtree(self._replaced, ignore_errors=True)
            self.root.rename(self._replaced)
        elif self.root.exists():
            shutil.rmtree(self.root)
        data = {**dataclasses.asdict(dataset.source), "digest": dataset.digest}
        settings = {"data": data, **config.to_dict()}
        if files := _digests(config):
            settings[_RESOLVED] = files
        write_text(self.config, yaml.safe_dump(settings, sort_keys=False))

    def discard(self) -> None:
        """Deletes a run that came to nothing, and brings back the one it was to replace."""
        shutil.rmtree(self.root, ignore_errors=True)
        if self._replaced.is_dir():
            self._replaced.rename(self.root)

    def check_same(self, config: FinetuneConfig, digest: str, beside: Sequence[str] = ()) -> None:
        """Compares settings, those ``beside`` left out, files and pictures with those that the run was begun with.

        Raises:
            CheckpointError: They differ.
        """
        saved, _, saved_digest = read_config(self.config)
        if saved_digest != digest:
            raise CheckpointError(f"{self.root}: the pictures have changed since this run began; start a new one")
        ours, theirs = config.to_dict(), saved.to_dict()
        different = [name for name in ours if ours[name] != theirs[name] and name not in beside]
        if different:
            name = different[0]
            raise CheckpointError(
                f"{self.root}: was begun with {name}={theirs[name]!r}, now {name}={ours[name]!r}; "
                "resume with the same settings or start a new run"
            )
        kept = self.resolved()
        for name, sha256 in _digests(config).items():
            if kept.get(name, sha256) != sha256:
                option = name.removesuffix(_SHA256)
                raise CheckpointError(
                    f"{self.root}: what --{option} {getattr(config, option)} names has changed since this run began; "
                    "bring it back as it was, or start a new run"
                )

    def write_history(self, rows: Rows) -> None:
        """Writes ``history.csv``, one row an epoch, and ``stability.csv``, one row a block and epoch."""
        write_text(self.history, _csv([{k: v for k, v in row.items() if not k.startswith(_DRIFT)} for row in rows]))
        moved: Rows = [
            {"epoch": row["epoch"], "block": name.removeprefix(_DRIFT), "drift": value}
            for row in rows
            for name, value in row.items()
            if name.startswith(_DRIFT)
        ]
        if moved:
            write_text(self.stability, _csv(moved))

    def read_history(self) -> list[dict[str, str]]:
        """Returns the rows of ``history.csv``; none where there is none."""
        return _rows(self.history)

    def read_stability(self) -> list[dict[str, str]]:
        """Returns the rows of ``stability.csv``; none where only a head was trained."""
        return _rows(self.stability)

    def resolve(self, **values: float | str) -> None:
        """Keeps what a setting came to, so that a resumed run need not find it again, or can compare."""
        fields = yaml.safe_load(self.config.read_text(encoding="utf-8"))
        fields[_RESOLVED] = {**fields.get(_RESOLVED, {}), **values}
        write_text(self.config, yaml.safe_dump(fields, sort_keys=False))

    def resolved(self) -> dict[str, Any]:
        """Returns what `resolve` kept."""
        found: dict[str, Any] = yaml.safe_load(self.config.read_text(encoding="utf-8")).get(_RESOLVED, {})
        return found

    def write_spec(self, spec: ModelSpec) -> None:
        """Writes ``spec.json``."""
        write_json(self.root / "spec.json", spec.to_dict())

    def finish(self, metrics: dict[str, Any]) -> None:
        """Writes ``metrics.json``; from here on the run is complete."""
        write_json(self.metrics, metrics)
        shutil.rmtree(self._replaced, ignore_errors=True)


def _digests(config: FinetuneConfig) -> dict[str, str]:
    """Returns the SHA-256 of the files that settings name, as far as they are there: weights, and a teacher's."""
    named = {"weights": Path(config.weights)} if config.weights not in ("default", "none") else {}
    if config.teacher is not None:
        named["teacher"] = RunFolder(Path(config.teacher)).checkpoint
    return {f"{name}{_SHA256}": sha256_of(path) for name, path in named.items() if path.is_file()}


def _is_stray(name: str) -> bool:
    """Tells the temporary name of a file of ours, left by a kill while it was written."""
    return any(name.startswith(f".{known}.") for known in _FILES) or name == ".last.ckpt.new"


def _rows(path: Path) -> list[dict[str, str]]:
    if not path.exists():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def _csv(rows: Rows) -> str:
    columns = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def read_config(path: Path) -> tuple[FinetuneConfig, Source, str]:
    """Returns settings, data source and dataset digest of a run.

    Raises:
        CheckpointError: The file is absent or damaged.
    """
    try:
        fields = yaml.safe_load(path.read_text(encoding="utf-8"))
        data = fields.pop("data")
        fields.pop(_RESOLVED, None)
        digest = data.pop("digest")
        return FinetuneConfig.from_dict(fields, str(path)), Source(**data), str(digest)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file; {path.parent} is not a run of edgetl finetune") from None
    except (OSError, yaml.YAMLError, AttributeError, KeyError, TypeError, InputError) as error:
        raise CheckpointError(f"{path}: cannot be read ({' '.join(str(error).split())[:120]})") from None


def read_settings(path: Path) -> dict[str, Any]:
    """Returns the settings of a ``--config`` file; those that name a run's data are left out.

    Raises:
        InputError: The file is absent or is not YAML of names and values.
    """
    try:
        fields = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: is not YAML ({' '.join(str(error).split())[:120]})") from None
    if not isinstance(fields, dict):
        raise InputError(f"{path}: must hold names and values, one a line, like: epochs: 10")
    return {name: value for name, value in fields.items() if name not in ("data", _RESOLVED)}


def open_run(root: Path) -> tuple[Checkpoint, Source]:
    """Opens a complete run.

    Returns:
        Its checkpoint, and the data source it was trained on.

    Raises:
        CheckpointError: The folder is not a run, or not complete, or damaged.
    """
    folder = RunFolder(root)
    _, data, digest = read_config(folder.config)
    if not folder.metrics.exists():
        raise CheckpointError(f"{root}: this run is not complete; go on with edgetl finetune ... --out {root} --resume")
    if not folder.checkpoint.is_file():
        raise CheckpointError(f"{folder.checkpoint}: is missing; train again")
    sha256 = sha256_of(folder.checkpoint)
    try:
        recorded = json.loads(folder.metrics.read_text(encoding="utf-8"))["checkpoint_sha256"]
    except (OSError, ValueError, KeyError, TypeError):
        raise CheckpointError(f"{folder.metrics}: is damaged; train again") from None
    if recorded != sha256:
        raise CheckpointError(f"{folder.checkpoint}: is not the file this run wrote (sha256 differs); train again")
    _, spec = load_network(folder.checkpoint)
    return Checkpoint(root, folder.checkpoint, spec, sha256, digest), data

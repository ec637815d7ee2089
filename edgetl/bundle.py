"""The bundle: a plain folder with one ONNX graph per variant and a manifest that proves what they are worth.

::

    NAME.edgetl/
      manifest.json                 format_version, digest, spec, variants, provenance, proof, files
      model.fp32.onnx ...           single files that any ONNX tool opens
      calibration.json              ranges per tensor (with INT8)
      latency.json                  raw samples of the export's own timing (with INT8)
      labels.txt                    one label a line
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgetl.artifacts import canonical_json, sha256_of, write_json, write_text
from edgetl.errors import BundleError, InputError, SpecError
from edgetl.spec import ModelSpec

__all__ = ["FORMAT_VERSION", "VARIANTS", "Bundle", "Variant", "check_free", "open_bundle", "write_manifest"]

FORMAT_VERSION = 1
VARIANTS = ("fp32", "fp16", "int8-tensorrt", "int8-x86", "int8-arm")
_MANIFEST = "manifest.json"
_LARGEST_MANIFEST = 64 << 20
_OWN = re.compile(r"manifest\.json|labels\.txt|calibration\.json|latency\.json|model\.[a-z0-9-]+\.onnx")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


@dataclass(frozen=True)
class Variant:
    """One graph of a bundle.

    Attributes:
        name: One of `VARIANTS`.
        precision: ``fp32``, ``fp16`` or ``int8``.
        target: ``any``, ``tensorrt``, ``x86`` or ``arm``.
        file: Name in the bundle's folder.
        sha256: Of the file.
        bytes: Its size.
        recommended: Whether it earned its place by measurement; None where it could not be measured.
        reason: Why (not), one line.
        metrics: ``top1, top1_drop, macro_f1, flip_rate, sqnr_db, latency_ratio``; fractions, None where not
            measured. Drops are positive when worse, ratios below 1 are faster than FP32.
    """

    name: str
    precision: str
    target: str
    file: str
    sha256: str
    bytes: int
    recommended: bool | None = None
    reason: str = ""
    metrics: Mapping[str, float | None] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Returns the JSON form."""
        return {**self.__dict__, "metrics": dict(self.metrics)}


@dataclass(frozen=True)
class Bundle:
    """An opened bundle. Opening reads the manifest alone; a graph's hash is checked when it is read.

    Attributes:
        root: The folder.
        spec: What its graphs expect and answer.
        variants: In the manifest's order.
        digest: Of the manifest, and through it of every file.
        manifest: The whole manifest.
    """

    root: Path
    spec: ModelSpec
    variants: tuple[Variant, ...]
    digest: str
    manifest: Mapping[str, Any] = field(repr=False)

    def variant(self, name: str) -> Variant:
        """Returns the variant of that name.

        Raises:
            BundleError: There is none.
        """
        for variant in self.variants:
            if variant.name == name:
                return variant
        has = ", ".join(v.name for v in self.variants)
        raise BundleError(f'{self.root}: has no variant "{name}"; it has {has}')

    def read(self, variant: Variant) -> bytes:
        """Returns a graph's bytes after checking their hash.

        Raises:
            BundleError: The file is absent or is not the one the manifest describes.
        """
        path = self.root / variant.file
        try:
            data = path.read_bytes()
        except OSError as error:
            raise BundleError(f"{path}: cannot be read ({error.strerror}); export or copy the bundle again") from None
        if hashlib.sha256(data).hexdigest() != variant.sha256:
            raise BundleError(f"{path}: is damaged or was replaced (sha256 differs); export or copy the bundle again")
        return data

    def verify(self) -> None:
        """Checks every file that the manifest lists.

        Raises:
            BundleError: One is absent or differs.
        """
        for name, sha256 in self.manifest["files"].items():
            path = self.root / name
            if not path.is_file():
                raise BundleError(f"{path}: is missing; export or copy the bundle again")
            if sha256_of(path) != sha256:
                raise BundleError(
                    f"{path}: is damaged or was replaced (sha256 differs); export or copy the bundle again"
                )


def write_manifest(
    root: Path,
    spec: ModelSpec,
    variants: Sequence[Variant],
    *,
    provenance: Mapping[str, Any],
    proof: Mapping[str, Any],
) -> str:
    """Completes a folder of graphs: writes labels.txt and, last, manifest.json.

    Returns:
        The bundle's digest.
    """
    write_text(root / "labels.txt", "".join(f"{label}\n" for label in spec.labels))
    files = {path.name: sha256_of(path) for path in sorted(root.iterdir()) if path.name != _MANIFEST}
    manifest = {
        "format_version": FORMAT_VERSION,
        "spec": spec.to_dict(),
        "variants": [variant.to_dict() for variant in variants],
        "provenance": dict(provenance),
        "proof": dict(proof),
        "files": files,
    }
    digest = _digest(manifest)
    write_json(root / _MANIFEST, {"digest": digest, **manifest})
    return digest


def check_free(root: Path, *, force: bool) -> None:
    """Says whether a bundle may be written here: ``force`` replaces bundles, never somebody's files.

    Raises:
        InputError: Something is in the way.
    """
    if not root.exists() and not root.is_symlink():
        return
    if not force:
        raise InputError(f"{root}: exists already; choose another --out or give --force")
    strange = [root] if not root.is_dir() else [p for p in sorted(root.iterdir()) if not _OWN.fullmatch(p.name)]
    if strange:
        raise InputError(
            f"{strange[0]}: is no part of a bundle, --force would delete somebody's files; choose another --out"
        )


def open_bundle(root: str | Path) -> Bundle:
    """Opens a bundle and checks its manifest.

    Raises:
        BundleError: The folder is not a bundle, its manifest is damaged, or its format is newer than this edgetl.
    """
    root = Path(root)
    manifest = _read_manifest(root)
    version = manifest.get("format_version")
    if type(version) is not int or version < 1:
        raise BundleError(f"{root / _MANIFEST}: has no format_version; is this a bundle?")
    if version > FORMAT_VERSION:
        raise BundleError(f"{root}: has format {version}, this edgetl reads {FORMAT_VERSION}: pip install -U edgetl")
    recorded = manifest.get("digest")
    if not recorded or recorded != _digest({k: v for k, v in manifest.items() if k != "digest"}):
        raise BundleError(f"{root / _MANIFEST}: was changed after export (its digest differs); export it again")
    try:
        spec = ModelSpec.from_dict(manifest["spec"])
        files = dict(manifest["files"].items())
        variants = tuple(_variant(entry, files) for entry in manifest["variants"])
        for name in files:
            _check_name(name)
        if len({variant.name for variant in variants}) != len(variants):
            raise ValueError("two variants of one name")
    except SpecError as error:
        raise BundleError(f"{root / _MANIFEST}: {error}") from None
    except (KeyError, TypeError, AttributeError, ValueError, RecursionError) as error:
        raise BundleError(f"{root / _MANIFEST}: is malformed ({type(error).__name__}: {error})") from None
    return Bundle(root, spec, variants, str(recorded), manifest)


def _read_manifest(root: Path) -> dict[str, Any]:
    path = root / _MANIFEST
    try:
        if not root.exists():
            raise BundleError(f"{root}: no such bundle; edgetl export makes one")
        if not path.is_file():
            raise BundleError(f"{root}: is not a bundle (no {_MANIFEST}); edgetl export makes one")
        if path.stat().st_size > _LARGEST_MANIFEST:
            raise BundleError(f"{path}: is larger than {_LARGEST_MANIFEST >> 20} MiB, no manifest is")
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise BundleError(f"{path}: cannot be read as JSON ({str(error)[:100]})") from None
    if not isinstance(data, dict):
        raise BundleError(f"{path}: must hold a JSON object")
    return data


_TYPES: dict[str, tuple[type, ...]] = {
    "name": (str,),
    "precision": (str,),
    "target": (str,),
    "file": (str,),
    "sha256": (str,),
    "bytes": (int,),
    "recommended": (bool, type(None)),
    "reason": (str,),
    "metrics": (dict,),
}


def _variant(entry: Mapping[str, Any], files: Mapping[str, str]) -> Variant:
    variant = Variant(**entry)
    for name, types in _TYPES.items():
        if not isinstance(entry.get(name, getattr(variant, name)), types):
            raise TypeError(f"variant field {name} is {entry[name]!r:.80}")
    _check_name(variant.file)
    if files[variant.file] != variant.sha256:
        raise ValueError(f"variant {variant.name} and files disagree on {variant.file}")
    return variant


def _check_name(name: str) -> None:
    """A manifest names files of its own folder, nothing else."""
    if not _NAME.fullmatch(name):
        raise ValueError(f"{name!r:.80} is not a plain file name")


def _digest(manifest: Mapping[str, Any]) -> str:
    try:
        return hashlib.sha256(canonical_json(manifest)).hexdigest()
    except (ValueError, TypeError, RecursionError):
        return ""

"""The bundle: a plain folder with one ONNX graph per variant and a manifest that proves what they are worth.

::

    NAME.edgetl/
      manifest.json                 format_version, digest, spec, variants, provenance, proof, files
      model.fp32.onnx ...           single files that any ONNX tool opens
      calibration.json              ranges per tensor (with INT8)
      latency.json                  raw samples of the export's own timing (with INT8)
      exemplars.npy                 embeddings of some training pictures, for learning on the device
      labels.txt                    one label a line
      manifest.sig                  an Ed25519 signature, where somebody signed it
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from edgetl.errors import BundleError, InputError, SpecError
from edgetl.files import open_regular
from edgetl.manifest import FORMAT_VERSION, MANIFEST, check_name, digest_of, read_manifest
from edgetl.onnxscan import external_data
from edgetl.spec import ModelSpec

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = [
    "EXEMPLARS",
    "FORMAT_VERSION",
    "VARIANTS",
    "Bundle",
    "Decision",
    "Variant",
    "check_free",
    "open_bundle",
    "write_manifest",
]

VARIANTS = ("fp32", "fp16", "int8-tensorrt", "int8-x86", "int8-arm")
_LARGEST_FILE = (1 << 31) - 1  # protobuf's own limit
_LARGEST_EXEMPLARS = 64 << 20
_CHUNK = 1 << 18
_LARGEST_LOG_ODDS = 1e300
_SIGNATURE = "manifest.sig"
EXEMPLARS = "exemplars.npy"
_AGAIN = "export or copy the bundle again"
_DAMAGED = f"is damaged or was replaced (sha256 differs); {_AGAIN}"
_OWN = r"manifest\.(json|sig)|exemplars\.npy|labels\.txt|calibration\.json|latency\.json|model\.[a-z0-9-]+\.onnx"


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
class Decision:
    """How logits become an answer.

    Attributes:
        temperature: What logits are divided by before softmax, so that of answers with confidence 0.8 eight in ten
            are right. Guo et al. 2017, "On Calibration of Modern Neural Networks".
        min_log_odds: Of the best class against all others (`edgetl.confidence.log_odds`); below it a picture is said to
            show none of the classes. None for never.
    """

    temperature: float = 1.0
    min_log_odds: float | None = None

    def __post_init__(self) -> None:
        if not 0.01 <= self.temperature <= 100:
            raise ValueError(f"temperature is {self.temperature}, it must be 0.01 to 100")
        least = self.min_log_odds
        if least is not None and (type(least) not in (int, float) or not abs(least) <= _LARGEST_LOG_ODDS):
            raise ValueError(f"min_log_odds is {least!r:.40}, it must be a number or null")


@dataclass(frozen=True)
class Bundle:
    """An opened bundle. Opening reads the manifest alone; a graph's hash is checked when it is read.

    Attributes:
        root: The folder.
        spec: What its graphs expect and answer.
        variants: In the manifest's order.
        digest: Of the manifest, and through it of every file.
        manifest: The whole manifest.
        decisions: By variant.
    """

    root: Path
    spec: ModelSpec
    variants: tuple[Variant, ...]
    digest: str
    manifest: Mapping[str, Any] = field(repr=False)
    decisions: Mapping[str, Decision] = field(default_factory=dict)

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

    def decision(self, variant: Variant) -> Decision:
        """Returns what a variant's logits are worth."""
        return self.decisions.get(variant.name, Decision())

    def read(self, variant: Variant) -> bytes:
        """Returns a graph's bytes after checking them.

        Raises:
            BundleError: The file is absent, is not the one the manifest describes, or wants to read other files.
        """
        data = self._content(variant.file, variant.sha256, size=variant.bytes)
        path = self.root / variant.file
        try:
            outside = external_data(data)
        except BundleError as error:
            raise BundleError(f"{path}: {error}; export the bundle again") from None
        if outside:
            raise BundleError(
                f"{path}: keeps tensors in other files (ONNX external data), which a bundle must not; export it again"
            )
        return data

    def exemplars(self) -> tuple[NDArray[np.float32], tuple[int, ...]]:
        """Returns embeddings of some of the pictures that the model was trained on, for `Classifier.learn`.

        Returns:
            (M, D) float32, sorted by class, and how many of each class there are.

        Raises:
            BundleError: There are none, or they are damaged.
        """
        import numpy as np

        from edgetl.npy import table_from_npy

        listed = self.manifest.get("exemplars")
        if listed is None:
            raise BundleError(f"{self.root}: was exported without exemplars, which learning needs; export it again")
        data = self._content(EXEMPLARS, self.manifest["files"].get(EXEMPLARS, ""), largest=_LARGEST_EXEMPLARS)
        try:
            counts = _counts(listed, len(self.spec.labels))
            points = table_from_npy(data)
            if len(points) != sum(counts) or not np.isfinite(points).all():
                raise ValueError(f"has {len(points)} for {sum(counts)} pictures, or some that are not finite")
        except ValueError as error:
            raise BundleError(f"{self.root / EXEMPLARS}: is malformed ({error}); export the bundle again") from None
        return points.astype(np.float32), counts

    def _content(self, name: str, sha256: str, *, size: int | None = None, largest: int = _LARGEST_FILE) -> bytes:
        path = self.root / name
        with _opened(path, size, largest) as file:
            data = file.read(largest if size is None else size + 1)
        if hashlib.sha256(data).hexdigest() != sha256:
            raise BundleError(f"{path}: {_DAMAGED}")
        return data

    def verify(self, *, but: Collection[str] = ()) -> None:
        """Checks every file that the manifest lists.

        Args:
            but: Names of files that are left out.

        Raises:
            BundleError: One is absent, cannot be read, or differs.
        """
        sizes = {variant.file: variant.bytes for variant in self.variants}
        for name, sha256 in self.manifest["files"].items():
            if name in but:
                continue
            path, digest = self.root / name, hashlib.sha256()
            with _opened(path, sizes.get(name), _LARGEST_FILE) as file:
                while chunk := file.read(_CHUNK):
                    digest.update(chunk)
            if digest.hexdigest() != sha256:
                raise BundleError(f"{path}: {_DAMAGED}")

    def unlisted(self) -> list[str]:
        """Returns the names in the folder that the manifest does not list, sorted; the signature is none of them.

        Raises:
            BundleError: The folder cannot be read.
        """
        try:
            found = {path.name for path in self.root.iterdir()}
        except OSError as error:
            raise BundleError(f"{self.root}: cannot be read ({error.strerror})") from None
        return sorted(found - {MANIFEST, _SIGNATURE, *self.manifest["files"]})


@contextmanager
def _opened(path: Path, size: int | None, largest: int) -> Iterator[BinaryIO]:
    """Opens a file of a bundle, or says why it cannot be what was exported."""
    try:
        file, found = open_regular(path)
        with file:
            if size is not None and found != size:
                told = f"it has {found} bytes, the manifest says {size}"
                raise BundleError(f"{path}: is damaged or was replaced ({told}); {_AGAIN}")
            if found > largest:
                raise BundleError(f"{path}: has {found} bytes, it may have {largest}; {_AGAIN}")
            yield file
    except FileNotFoundError:
        raise BundleError(f"{path}: is missing; {_AGAIN}") from None
    except OSError as error:
        raise BundleError(f"{path}: cannot be read ({error.strerror}); {_AGAIN}") from None


def _counts(listed: Any, classes: int) -> tuple[int, ...]:
    """Returns how many exemplars of each class there are."""
    found = listed.get("counts") if isinstance(listed, dict) else None
    if not isinstance(found, list) or any(type(count) is not int or count < 1 for count in found):
        raise ValueError("the manifest does not say how many there are")
    if len(found) != classes:
        raise ValueError("not of every class")
    return tuple(found)


def write_manifest(
    root: Path,
    spec: ModelSpec,
    variants: Sequence[Variant],
    *,
    provenance: Mapping[str, Any],
    proof: Mapping[str, Any],
    decisions: Mapping[str, Decision] | None = None,
    exemplars: Sequence[int] | None = None,
) -> str:
    """Completes a folder of graphs: writes labels.txt and, last, manifest.json.

    Returns:
        The bundle's digest.
    """
    from edgetl.artifacts import sha256_of, write_json, write_text  # a device writes none

    write_text(root / "labels.txt", "".join(f"{label}\n" for label in spec.labels))
    files = {path.name: sha256_of(path) for path in sorted(root.iterdir()) if path.name not in (MANIFEST, _SIGNATURE)}
    manifest = {
        "format_version": FORMAT_VERSION,
        "spec": spec.to_dict(),
        "variants": [variant.to_dict() for variant in variants],
        "provenance": dict(provenance),
        "proof": dict(proof),
        "decisions": {name: vars(decision) for name, decision in (decisions or {}).items()},
        "exemplars": None if exemplars is None else {"counts": list(exemplars)},
        "files": files,
    }
    digest = digest_of(manifest)
    write_json(root / MANIFEST, {"digest": digest, **manifest})
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
    strange = [root] if not root.is_dir() else [p for p in sorted(root.iterdir()) if not re.fullmatch(_OWN, p.name)]
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
    manifest = read_manifest(root)
    try:
        spec = ModelSpec.from_dict(manifest["spec"])
        files = dict(manifest["files"].items())
        variants = tuple(_variant(entry, files) for entry in manifest["variants"])
        for name in files:
            check_name(name)
        if len({variant.name for variant in variants}) != len(variants):
            raise ValueError("two variants of one name")
        decisions = {name: Decision(**entry) for name, entry in manifest.get("decisions", {}).items()}
    except SpecError as error:
        raise BundleError(f"{root / MANIFEST}: {error}") from None
    except (KeyError, TypeError, AttributeError, ValueError, RecursionError) as error:
        raise BundleError(f"{root / MANIFEST}: is malformed ({type(error).__name__}: {error})") from None
    return Bundle(root, spec, variants, str(manifest["digest"]), manifest, decisions)


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
    check_name(variant.file)
    if not 0 <= variant.bytes <= _LARGEST_FILE:
        raise ValueError(f"variant {variant.name} has {variant.bytes} bytes")
    if files[variant.file] != variant.sha256:
        raise ValueError(f"variant {variant.name} and files disagree on {variant.file}")
    return variant

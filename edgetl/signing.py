"""Signatures of bundles: Ed25519 over the manifest's digest, and through it over every file.

``manifest.sig`` lies beside the manifest: ``{"format_version": 1, "key": ..., "signature": ...}``, the key being the
start of its SHA-256, the signature base64. The private key stays with whoever exports; devices have public keys.
RFC 8032, "Edwards-Curve Digital Signature Algorithm".
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from edgetl.artifacts import write_json
from edgetl.bundle import Bundle
from edgetl.errors import BundleError, InputError, require
from edgetl.files import read_regular

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

__all__ = ["SIGNATURE", "Key", "check_signature", "make_keys", "sign_bundle"]

SIGNATURE = "manifest.sig"
Key = str | Path | bytes

_FORMAT_VERSION = 1
_PREFIX = b"edgetl bundle 1\n"
_LARGEST = 1 << 16  # bytes, of a key or a signature


def make_keys(private: Path) -> Path:
    """Writes a new key pair: ``private`` that only its owner may read, and ``private`` + ``.pub`` for devices.

    Returns:
        The public key's path.

    Raises:
        InputError: A file is there already, or cannot be written.
        MissingExtraError: cryptography is not installed.
    """
    ed25519, serialization = _ed25519(), _serialization()
    key = ed25519.Ed25519PrivateKey.generate()
    public = private.with_name(f"{private.name}.pub")
    pem = serialization.Encoding.PEM
    texts = {
        private: key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()),
        public: key.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo),
    }
    for path in texts:
        if path.exists():
            raise InputError(f"{path}: exists already; a key that is lost cannot be made again, choose another name")
    try:
        for path, text in texts.items():
            with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                file.write(text)
    except OSError as error:
        raise InputError(f"{private}: cannot be written ({error.strerror})") from None
    public.chmod(0o644)
    return public


def sign_bundle(bundle: Bundle, private: Path) -> str:
    """Verifies a bundle, and writes ``manifest.sig`` into it.

    Args:
        bundle: Every file of it is checked first.
        private: Ed25519 key, PEM (PKCS 8), not encrypted; ``openssl genpkey -algorithm ed25519`` makes one too.

    Returns:
        The key's name, as `check_signature` tells it.

    Raises:
        BundleError: A file is damaged.
        InputError: The key cannot be used.
        MissingExtraError: cryptography is not installed.
    """
    bundle.verify()
    ed25519, serialization = _ed25519(), _serialization()
    try:
        key = serialization.load_pem_private_key(_read(private), password=None)
    except (ValueError, TypeError):
        raise InputError(f"{private}: is no PEM file of an unencrypted private key") from None
    if not isinstance(key, ed25519.Ed25519PrivateKey):
        raise InputError(f"{private}: is no Ed25519 key; edgetl bundle keygen makes one")
    name = _name(key.public_key())
    signature = base64.b64encode(key.sign(_message(bundle))).decode()
    write_json(bundle.root / SIGNATURE, {"format_version": _FORMAT_VERSION, "key": name, "signature": signature})
    return name


def check_signature(bundle: Bundle, trusted: Sequence[Key]) -> str:
    """Refuses a bundle that none of the trusted keys has signed.

    Args:
        bundle: Its digest is signed; what its files hold is checked when they are read.
        trusted: Public keys: paths of PEM files, or their content.

    Returns:
        The name of the key that signed it.

    Raises:
        BundleError: It is not signed, or by another key, or its signature is damaged or belongs to another bundle.
        InputError: A key cannot be used.
        MissingExtraError: cryptography is not installed.
    """
    if not trusted:
        raise InputError("trusted_keys is empty: no bundle could be loaded; give public keys, or leave it out")
    keys = {_name(key): key for key in map(_public, trusted)}
    path = bundle.root / SIGNATURE
    try:
        found = json.loads(read_regular(path, _LARGEST))
        name, signature = str(found["key"]), base64.b64decode(found["signature"], validate=True)
        version = found["format_version"]
        if base64.b64encode(signature).decode() != found["signature"]:  # its last letter has bits that say nothing
            raise ValueError
    except FileNotFoundError:
        raise BundleError(
            f"{bundle.root}: is not signed; edgetl bundle sign {bundle.root} --key KEY signs it"
        ) from None
    except OSError as error:
        raise BundleError(f"{path}: cannot be read ({error.strerror}); sign the bundle again") from None
    except (ValueError, KeyError, TypeError, RecursionError):
        raise BundleError(f"{path}: is damaged; sign the bundle again") from None
    if version != _FORMAT_VERSION:
        raise BundleError(f"{path}: has format {version!r:.20}, this edgetl reads {_FORMAT_VERSION}: update edgetl")
    if name not in keys:
        raise BundleError(f"{bundle.root}: is signed by key {name:.16}, which is not trusted here")
    try:
        keys[name].verify(signature, _message(bundle))
    except _invalid_signature():
        raise BundleError(f"{path}: is not a signature of this bundle; it was changed, or its manifest was") from None
    return name


def _message(bundle: Bundle) -> bytes:
    return _PREFIX + bundle.digest.encode()


def _public(key: Key) -> Ed25519PublicKey:
    """Returns a public key from a PEM file or its content."""
    text = key.encode() if isinstance(key, str) and "-----BEGIN" in key else key
    shown = "the key" if isinstance(text, bytes) else str(text)
    data = text if isinstance(text, bytes) else _read(Path(text))
    ed25519, serialization = _ed25519(), _serialization()
    try:
        found = serialization.load_pem_public_key(data)
    except (ValueError, TypeError):
        secret = b"PRIVATE KEY" in data
        told = "is a private key, which has no place on a device; give its .pub" if secret else "is no PEM public key"
        raise InputError(f"{shown}: {told}") from None
    if not isinstance(found, ed25519.Ed25519PublicKey):
        raise InputError(f"{shown}: is no Ed25519 key; edgetl bundle keygen makes one")
    return cast("Ed25519PublicKey", found)


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(_LARGEST)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None


def _name(key: Ed25519PublicKey) -> str:
    return hashlib.sha256(key.public_bytes_raw()).hexdigest()[:16]


def _ed25519() -> Any:
    return require("cryptography.hazmat.primitives.asymmetric.ed25519", "sign")


def _serialization() -> Any:
    return require("cryptography.hazmat.primitives.serialization", "sign")


def _invalid_signature() -> type[Exception]:
    found: type[Exception] = require("cryptography.exceptions", "sign").InvalidSignature
    return found

"""``edgetl bundle``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from edgetl.cli.options import PATH, emit_json, json_option

__all__ = ["bundle"]


@click.group(short_help="Verify and sign bundles; make keys for it.")
def bundle() -> None:
    """Verify and sign bundles.

    \b
      edgetl bundle keygen release.key                       once: release.key stays here, release.key.pub goes out
      edgetl bundle sign parts.edgetl --key release.key
      edgetl bundle verify parts.edgetl --trusted-key release.key.pub

    A device takes only what was signed: edgetl.load("parts.edgetl", trusted_keys=["release.key.pub"]).
    """  # noqa: D301 (click wants the character itself)


@bundle.command("verify", short_help="Check every file of a bundle, and who signed it.")
@click.argument("path", metavar="BUNDLE", type=PATH)
@click.option("--trusted-key", "trusted_keys", type=PATH, multiple=True, help="Public key; repeatable.")
@json_option
def _verify(path: Path, trusted_keys: Sequence[Path], json_out: str | None) -> None:
    """Check every file of BUNDLE against its manifest, and its graphs for what would read other files.

    Files that the manifest does not list are named; nothing reads them.
    """
    from edgetl.artifacts import printable
    from edgetl.bundle import open_bundle

    opened = open_bundle(path)
    opened.verify()
    for variant in opened.variants:
        opened.read(variant)
    signer = None
    if trusted_keys:
        from edgetl.signing import check_signature

        signer = check_signature(opened, trusted_keys)
    files, unlisted = len(opened.manifest["files"]), opened.unlisted()
    if json_out != "-":
        click.echo(f"{path}: {files} files are as exported" + (f", signed by key {signer}" if signer else ""))
        for name in unlisted:
            click.echo(f"{printable(path / name)}: was not exported with the bundle, and nothing reads it")
    result = {"bundle": str(path), "digest": opened.digest, "files": files, "signed_by": signer}
    emit_json(json_out, {**result, "unlisted": [printable(name) for name in unlisted]})


@bundle.command("sign", short_help="Sign a bundle with a private key.")
@click.argument("path", metavar="BUNDLE", type=PATH)
@click.option("--key", type=PATH, required=True, help="Private key, PEM; edgetl bundle keygen makes one.")
@json_option
def _sign(path: Path, key: Path, json_out: str | None) -> None:
    """Check every file of BUNDLE, then write manifest.sig into it."""
    from edgetl.bundle import open_bundle
    from edgetl.signing import sign_bundle

    opened = open_bundle(path)
    name = sign_bundle(opened, key)
    if json_out != "-":
        click.echo(f"{path}: signed by key {name}")
    emit_json(json_out, {"bundle": str(path), "digest": opened.digest, "signed_by": name})


@bundle.command("keygen", short_help="Make a key pair for signing.")
@click.argument("path", metavar="KEY", type=PATH)
def _keygen(path: Path) -> None:
    """Write a private key to KEY, and the public one that devices get to KEY.pub."""
    from edgetl.signing import make_keys

    public = make_keys(path)
    click.echo(f"{path}: the private key, keep it where bundles are signed\n{public}: for devices")

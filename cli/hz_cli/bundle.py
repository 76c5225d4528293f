"""hz-bundle: sign a bundle, verify its signature, give it a self-test, show what is in it; needs no torch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from hz_cli import options, render

if TYPE_CHECKING:
    from hz_runtime.bundle.store import Bundle

_BUNDLE = click.Path(path_type=Path)
_trust = click.option(
    "--trust",
    metavar="KEY",
    multiple=True,
    type=click.Path(path_type=Path),
    help="Public key (PEM) or certificate; repeatable.  [default: the files of $HZ_TRUST]",
)
EPILOG = """\b
Exit codes: 0 done, or the signature holds; 2 usage; 4 bundle refused.
"""


@click.group(cls=render.HzGroup, context_settings=options.CONTEXT, epilog=EPILOG)
@options.version
def bundle() -> None:
    """Sign bundles, verify their signatures, show what is in them.

    A signature is the file model.sig in the bundle, in the form of OpenSSF model signing 1.0: the published
    model-signing package verifies it, too.

    \b
      openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out hz.key
      openssl pkey -in hz.key -pubout -out hz.pub
      hz-bundle sign site.hz --key hz.key
      hz-bundle verify site.hz --trust hz.pub
    """


@bundle.command("sign")
@click.argument("path", metavar="BUNDLE", type=_BUNDLE)
@click.option(
    "--key",
    metavar="KEY",
    required=True,
    type=click.Path(path_type=Path),
    help="Private key (PEM, P-256, P-384 or P-521); the password of an encrypted one: $HZ_SIGN_PASSWORD.",
)
def sign(path: Path, key: Path) -> None:
    """Verify BUNDLE against its manifest and sign every file of it; an older signature is replaced."""
    from hz_runtime.bundle.signing_keys import SigningKey
    from hz_runtime.bundle.store import sign_bundle

    signing = SigningKey.read(key)
    signed = sign_bundle(path, signing)
    render.say(
        f"{signed.path.name}: {len(signed.files) + 1} files signed with key {signing.key[:12]}..., "
        f"bundle {signed.id[:19]}..."
    )


@bundle.command("verify")
@click.argument("path", metavar="BUNDLE", type=_BUNDLE)
@_trust
def verify(path: Path, trust: tuple[Path, ...]) -> None:
    """Refuse BUNDLE (exit 4) unless a trusted key signed it as it is: every file, and none more."""
    from hz_cli.bundles import signed_by
    from hz_runtime.bundle.store import load_bundle
    from hz_runtime.bundle.trust import Trust

    trusted = Trust.read(trust, required=True)
    found = load_bundle(path, trusted)
    render.say(f"{found.path.name}: {signed_by(found, trusted)}; {len(found.files) + 1} files, {found.id}")


@bundle.command("self-test")
@click.argument("path", metavar="BUNDLE", type=_BUNDLE)
@click.option(
    "--key",
    metavar="KEY",
    type=click.Path(path_type=Path),
    help="Private key (PEM) to sign the bundle with, as it is then. Without it the bundle is unsigned.",
)
def self_test(path: Path, key: Path | None) -> None:
    """Write into BUNDLE what it answers here about a made-up head, for hz-run --self-test elsewhere.

    Do this where the bundle is known to work: what it answers now is what is right from then on. hz-export
    does so by itself. The bundle's id changes.
    """
    options.need("hz-bundle self-test", "cpu", "onnxruntime")
    from hz_export.self_test import add_self_test
    from hz_runtime.bundle.signing_keys import SigningKey

    added = add_self_test(path, None if key is None else SigningKey.read(key))
    render.say(f"{added.path.name} carries a self-test; {'signed, ' if key else ''}{added.id}")
    render.say(f"next:  hz-run --self-test --model {path}")


@bundle.command("bom")
@click.argument("path", metavar="[BUNDLE]", required=False, type=_BUNDLE)
@click.option(
    "--out", "-o", metavar="FILE", required=True, type=click.Path(path_type=Path), help="JSON to write."
)
def bom(path: Path | None, out: Path) -> None:
    """Write the bill of materials of BUNDLE: its files' hashes and every network's model card (CycloneDX)."""
    from hz_export.ml_bom import ml_bom
    from hz_runtime.bundle.store import load_bundle
    from hz_runtime.io.atomic import atomic_write_bytes
    from hz_runtime.io.json_text import to_json

    found = load_bundle(path)
    atomic_write_bytes(out, to_json(ml_bom(found)))
    render.say(f"{out.name}: {len(found.files) + 1} files of {found.path.name}, CycloneDX 1.6")


@bundle.command("show")
@click.argument("path", metavar="[BUNDLE]", required=False, type=_BUNDLE)
def show(path: Path | None) -> None:
    """What BUNDLE holds, once its files match its manifest: networks, people, licence, signature.

    Without BUNDLE, of the one that hz-run takes by itself. Whose signature it is, says hz-bundle verify.
    """
    from hz_runtime.bundle.store import load_bundle

    for line in description(load_bundle(path)):
        render.say(line)


def description(found: Bundle) -> list[str]:
    """What `hz-bundle show` prints."""
    from hz_cli.info import calibrated, calibration_lines
    from hz_runtime.bundle.store import read_signature

    lines = [f"{found.path.name}: {found.name}", f"  id         {found.id}", f"  made       {found.created}"]
    for entry in found.models:
        to = f" to {entry.target}" if entry.target else ""
        lines.append(f"  {entry.role:<10} {entry.precision}{to}: {entry.file}, {entry.bytes / 1e6:.1f} MB")
    lines += [f"  engine     {entry.file}, {entry.bytes / 1e6:.1f} MB" for entry in found.engines]
    cohort = found.cohort
    people = [f"{cohort['n']} people"] if cohort.get("n") else []
    people += [", ".join(cohort["sites"])] if cohort.get("sites") else []
    people += ["{:g} to {:g} years".format(*cohort["age_range"])] if cohort.get("age_range") else []
    lines.append(f"  trained on {'; '.join(people) or 'unknown'}")
    lines += calibration_lines(calibrated(found))
    lines.append(f"  licence    {found.licence or 'unknown'}")
    signature = read_signature(found)
    if signature is None:
        lines.append("  signature  none")
    else:
        key = f"key {signature.key[:12]}..." if signature.key else "a key that it does not name"
        lines.append(f"  signature  of {len(signature.files)} files by {key}, not verified here")
    return lines


def main() -> None:
    """The command's entry point."""
    render.run_command(bundle)


if __name__ == "__main__":
    main()

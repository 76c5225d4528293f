"""hz-bundle, and --trust and --require-signed of the commands that open bundles."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from click.testing import CliRunner

import tiny
from hz_cli import bids, prepare, run
from hz_cli.bundle import bundle
from hz_runtime.errors import HzError
from hz_runtime.preparation.network_mask import find_mask_network
from small_keys import key_pair

pytestmark = pytest.mark.requirement("signed")

ROOT = Path(__file__).resolve().parents[2]
needs_keys = pytest.mark.skipif(not find_spec("cryptography"), reason="cryptography is not installed")
needs_referee = pytest.mark.skipif(not find_spec("model_signing"), reason="model-signing is not installed")


def hz_bundle(*arguments: object) -> tuple[int, str]:
    done = CliRunner().invoke(bundle, [str(a) for a in arguments])
    error = done.exception
    code = error.exit_code if isinstance(error, HzError) else done.exit_code
    return code, done.output + str(error or "")


@needs_keys
def test_sign_verify_show(tmp_path: Path) -> None:
    path = tiny.make_tiny_bundle(tmp_path / "site.hz")
    (secret, public), (_, other) = key_pair(tmp_path, "hz"), key_pair(tmp_path, "other")
    assert "signature  none" in hz_bundle("show", path)[1]
    assert hz_bundle("verify", path, "--trust", public)[0] == 4
    code, said = hz_bundle("sign", path, "--key", secret)
    assert code == 0 and "6 files signed with key" in said
    code, said = hz_bundle("verify", path, "--trust", other, "--trust", public)
    assert code == 0 and "site.hz: signed with the key of hz.pub" in said and "6 files" in said
    assert hz_bundle("verify", path, "--trust", other)[0] == 4
    assert hz_bundle("verify", path)[0] == 2  # no key
    shown = hz_bundle("show", path)[1]
    assert "of 6 files by key" in shown and "20 people; site-a, site-b; 18 to 80 years" in shown
    assert "harmonizer fp16 to site-b: harmonizer.fp16.onnx" in shown


@needs_keys
def test_hz_run_holds_a_bundle_to_the_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tiny.make_tiny_bundle(tmp_path / "site.hz")
    (secret, public), (_, other) = key_pair(tmp_path, "hz"), key_pair(tmp_path, "other")
    asked = ["none.nii", "--model", str(path), "--out", str(tmp_path / "out")]

    def said(*arguments: object) -> str:
        done = CliRunner().invoke(run.main, [*asked, *map(str, arguments)])
        return f"{done.exit_code} {done.output} {done.stderr}"

    no_input = "none.nii"  # comes after the bundle was opened
    assert said().startswith("2") and no_input in said()
    assert "site.hz: not signed" in said("--trust", public) and no_input in said("--trust", public)
    assert said("--trust", public, "--require-signed").startswith("4")
    assert said("--require-signed").startswith("2")
    hz_bundle("sign", path, "--key", secret)
    assert no_input in said("--trust", public, "--require-signed")
    assert "signed with the key of hz.pub" in said("--trust", public)
    assert said("--trust", other).startswith("4")
    monkeypatch.setenv("HZ_TRUST", os.pathsep.join([str(other), str(public)]))
    assert "signed with the key of hz.pub" in said("--require-signed")
    monkeypatch.setenv("HZ_TRUST", str(other))
    assert said().startswith("4")
    assert "signed with the key of hz.pub" in said("--trust", public)  # a named key is instead of those
    assert not (tmp_path / "out").exists()


@needs_keys
def test_the_bundle_of_a_mask_network_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """hz-prepare and hz-bids open bundles that --brain-mask names, or that lie in their default place."""
    from hz_runtime.bundle.trust import Trust
    from hz_runtime.errors import BundleError

    path = tiny.make_tiny_bundle(tmp_path / "masks.hz")
    _, public = key_pair(tmp_path, "hz")
    trust = Trust.read([public], required=True)
    with pytest.raises(BundleError, match=r"masks.hz is not signed"):
        find_mask_network(path, needed=True, trust=trust)
    monkeypatch.setenv("HZ_BRAIN_MASK", str(path))
    with pytest.raises(BundleError, match=r"masks.hz is not signed"):
        find_mask_network(trust=trust)
    (tmp_path / "raw").mkdir()
    (tmp_path / "head.nii").write_bytes(b"")
    strict = ["--trust", str(public), "--require-signed", "--brain-mask", str(path)]
    asked = {
        prepare.main: [str(tmp_path / "head.nii"), "--out", str(tmp_path / "out")],
        bids.main: [str(tmp_path / "raw"), str(tmp_path / "out"), "participant", "--model", str(path)],
    }
    (tmp_path / "raw" / "dataset_description.json").write_text('{"Name": "raw", "BIDSVersion": "1.10.0"}')
    (tmp_path / "raw" / "sub-1" / "anat").mkdir(parents=True)
    (tmp_path / "raw" / "sub-1" / "anat" / "sub-1_T1w.nii").write_bytes(b"")
    for command, arguments in asked.items():
        done = CliRunner().invoke(command, [*arguments, *strict])
        assert done.exit_code == 4 and "masks.hz is not signed" in done.stderr


def test_without_cryptography(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A lean install runs unsigned bundles, and says what verifying takes."""
    path = tiny.make_tiny_bundle(tmp_path / "site.hz")
    (tmp_path / "hz.pub").touch()
    monkeypatch.setitem(sys.modules, "cryptography", None)
    asked = ["none.nii", "--model", str(path), "--out", str(tmp_path / "out")]
    assert "none.nii" in CliRunner().invoke(run.main, asked).stderr
    for more in (["--require-signed"], ["--trust", str(tmp_path / "hz.pub")]):
        refusal = CliRunner().invoke(run.main, [*asked, *more])
        assert refusal.exit_code == 2 and "pip install 'hz-mri[sign]'" in refusal.stderr
        assert "needs cryptography, which this environment does not have" in refusal.stderr


def published(*arguments: object) -> subprocess.CompletedProcess[str]:
    """The published model_signing package, as a command."""
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "model_signing", *map(str, arguments)],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


@needs_keys
@needs_referee
@pytest.mark.parametrize("curve", ["SECP256R1", "SECP384R1"])
def test_the_published_package_accepts_ours_and_ours_accepts_its(tmp_path: Path, curve: str) -> None:
    secret, public = key_pair(tmp_path, "hz", curve)
    ours, theirs = (tiny.make_tiny_bundle(tmp_path / f"{who}.hz") for who in ("ours", "theirs"))
    hz_bundle("sign", ours, "--key", secret)
    theirs_on_ours = ["verify", "key", ours, "--public_key", public, "--signature", ours / "model.sig"]
    assert published(*theirs_on_ours).returncode == 0
    (ours / "more.txt").write_text("more")
    assert published(*theirs_on_ours).returncode != 0
    (ours / "more.txt").unlink()
    (ours / "age.onnx").write_bytes(b"other")
    assert published(*theirs_on_ours).returncode != 0
    done = published("sign", "key", theirs, "--private_key", secret, "--signature", theirs / "model.sig")
    assert done.returncode == 0, done.stderr
    assert hz_bundle("verify", theirs, "--trust", public)[0] == 0
    (theirs / "more.txt").write_text("more")
    assert hz_bundle("verify", theirs, "--trust", public)[0] == 4

"""The image, built and run as a hospital would run it; what comes out is what a plain install gives.

It takes minutes, root, buildah, mmdebstrap and bubblewrap (Debian's packages), and an index of Python
packages: it is run by hand before a release (docs/release.md), and only where the environment asks for it.

    HZ_IMAGE=build           builds it, on Debian's packages; with HZ_IMAGE_WHEELS=DIR from those wheels
    HZ_IMAGE=localhost/hz    takes one that containers/build.sh has built
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("pydicom", reason="needs the extra dicom")
pytest.importorskip("niimath", reason="needs the extra prep")

from golden import hashes_of
from small_head_series import SLICES, write_head_series

ROOT = Path(__file__).resolve().parent.parent
PROGRAMS = ("buildah", "mmdebstrap", "bwrap")
ASKED = os.environ.get("HZ_IMAGE", "")
WHEELS = os.environ.get("HZ_IMAGE_WHEELS", "")
UID, GID = "12345", "54321"
PROCESS = ("process", "--require", "onnxruntime-cpu", "--threads", "1")


def said(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command[0]}: {done.stderr[-2000:]}"
    return done.stdout.strip()


@pytest.fixture(scope="module")
def image() -> Iterator[tuple[Path, dict[str, str]]]:
    """(the root of a container's file system, the environment that the image sets)."""
    if not ASKED:
        pytest.skip("takes minutes; HZ_IMAGE=build builds the image")
    if missing := [name for name in PROGRAMS if shutil.which(name) is None]:
        pytest.skip(f"needs {', '.join(missing)}")
    if os.geteuid():
        pytest.skip("needs root, to look into an image")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STORAGE_DRIVER", "vfs")
        name = "localhost/hz-test" if ASKED == "build" else ASKED
        if ASKED == "build":
            wheels = ["--wheels", WHEELS] if WHEELS else []
            said("sh", str(ROOT / "containers" / "build.sh"), "--local", *wheels, name)
        settings = json.loads(said("buildah", "inspect", "--type", "image", name))["OCIv1"]["config"]
        container = said("buildah", "from", name)
        yield Path(said("buildah", "mount", container)), dict(e.split("=", 1) for e in settings["Env"])
        said("buildah", "rm", container)
        if ASKED == "build":
            said("buildah", "rmi", name)


def confined(root: Path, environment: dict[str, str], source: Path, out: Path) -> list[str]:
    """A command for what runs in the image: nobody's user, nothing but its own files to read, no network, 64
    MB of shared memory, no HOME, no capability, no way to win one. setpriv is the image's own."""
    command = [
        "bwrap", "--unshare-net", "--unshare-pid", "--unshare-ipc", "--unshare-uts", "--die-with-parent",
        "--cap-drop", "ALL",
        "--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID", "--cap-add", "CAP_SETPCAP",
        "--ro-bind", str(root), "/", "--proc", "/proc", "--dev", "/dev",
        "--size", str(64 << 20), "--perms", "1777", "--tmpfs", "/dev/shm",
        "--perms", "1777", "--tmpfs", "/tmp",
        "--ro-bind", str(source), "/tmp/input", "--bind", str(out), "/tmp/output", "--chdir", "/tmp",
        "--clearenv",
    ]  # fmt: skip
    for name, value in environment.items():
        command += ["--setenv", name, value] if name != "HOME" else []
    return [
        *command, "setpriv", "--reuid", UID, "--regid", GID, "--clear-groups", "--no-new-privs",
        "--inh-caps=-all", "--bounding-set=-all",
    ]  # fmt: skip


@pytest.mark.slow
def test_the_image_gives_what_a_plain_install_gives(
    image: tuple[Path, dict[str, str]], tmp_path: Path
) -> None:
    source, plain, out = (tmp_path / name for name in ("in", "plain", "out"))
    out.mkdir()
    write_head_series(source)
    for folder in (tmp_path.parent, tmp_path, source):
        folder.chmod(0o755)
    os.chown(out, int(UID), int(GID))
    same_time = {"SOURCE_DATE_EPOCH": "1700000000"}
    inside = confined(image[0], {**image[1], **same_time}, source, out)
    user = said(*inside, "sh", "-c", "id -u; id -g; cat /proc/self/status; env")
    assert user.splitlines()[:2] == [UID, GID] and "NoNewPrivs:\t1" in user and "HOME=" not in user
    assert all(f"{which}:\t{0:016x}" in user for which in ("CapBnd", "CapPrm", "CapEff"))
    interfaces = said(*inside, "cat", "/proc/net/dev").splitlines()[2:]
    assert [line.split(":")[0].strip() for line in interfaces] == ["lo"]
    assert subprocess.run([*inside, "touch", "/venv/x"], capture_output=True, check=False).returncode
    assert not list(image[0].glob("venv/lib/python3*/site-packages/pip"))

    said(*inside, "hz-dicom", *PROCESS, "/tmp/input", "/tmp/output")
    rooms = os.pathsep.join(str(ROOT / room) for room in ("runtime", "cli"))
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**same_time, "PYTHONPATH": rooms}.items():
            patch.setenv(name, value)
        said(sys.executable, "-m", "hz_cli.dicom", *PROCESS, str(source), str(plain))
    found = hashes_of(out)
    assert found == hashes_of(plain)
    assert "result.json" in found and sum(name.startswith("MR_") for name in found) == SLICES
    assert {path.stat().st_uid for path in out.iterdir()} == {int(UID)}

"""hz-orthanc as a user calls it."""

from __future__ import annotations

import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

pytest.importorskip("pydicom", reason="needs the extra dicom")
pytest.importorskip("dcm2niix", reason="needs the extra dicom")
pytest.importorskip("highdicom", reason="needs the extra dicom")

import small_dicom as small
from help_pages import help_of
from hz_cli import orthanc
from hz_runtime.hospital import process
from hz_runtime.hospital.journal import NAME, Journal
from identity import leaks, leaks_below, plant, write_identified
from processes import started, until
from small_orthanc import SmallOrthanc
from stand_in_runs import open_without_preparation


@pytest.fixture
def server() -> Iterator[SmallOrthanc]:
    made = SmallOrthanc()
    yield made
    made.stop()


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tiny_bundle: Path, server: SmallOrthanc) -> Any:
    monkeypatch.setattr(process, "open_bundle", open_without_preparation)
    monkeypatch.setattr("hz_cli.batch.signal.signal", lambda *_: None)
    environment = {
        "HZ_BUNDLE": str(tiny_bundle), "HZ_ORTHANC_URL": server.url,
        "HZ_ORTHANC_STATE": str(tmp_path / "state"),
    }  # fmt: skip

    def run(*arguments: object) -> Result:
        return CliRunner().invoke(orthanc.main, [str(a) for a in arguments], env=environment)

    return run


def test_a_series_goes_there_and_back(
    call: Any, server: SmallOrthanc, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the real way of a study but its preparation; what is planted in it, and in one that is set aside,
    is in no line, file or object but for the UIDs of the images that the objects refer to."""
    server.send(write_identified(tmp_path / "in"))
    torn = small.write_series(tmp_path / "torn", StudyInstanceUID="2.25.8", SeriesInstanceUID="2.25.8.1")
    torn = plant(torn[:8])
    torn[3].write_bytes(torn[3].read_bytes()[:-700])
    server.send(torn)
    left, places, opened = tmp_path / "state" / "temporary" / "killed", [], process.open_bundle
    left.mkdir(parents=True)

    def watched(*arguments: Any) -> Any:
        places.append((tempfile.gettempdir(), left.exists()))
        return opened(*arguments)

    monkeypatch.setattr(process, "open_bundle", watched)
    done = call("--once", "--since", 0, "--page", "pdf", "--tries", 1)
    assert done.exit_code == 0, done.output
    found = server.derived()
    assert sorted(len(files) for files in found.values()) == [1, 1, 32]
    assert {str(data.Modality) for files in found.values() for data in files} == {"MR", "SR", "DOC"}
    assert all(str(data.PatientID).startswith("sub-") for files in found.values() for data in files)
    assert "flagged, predicted age" in done.output and "32 images, report, page" in done.output
    status = call("status").output
    assert "read to change" in status and "1 done, 1 set aside" in status and "is cut short" in status
    again = call("--once")
    assert again.exit_code == 0 and "flagged" not in again.output and len(server.posts) == 34

    # What a killed bridge has left of a head is removed, and what this one leaves is found by the next.
    assert places == [(str(left.parent), False)] and not left.parent.exists()
    assert leaks("said", f"{done.output}{status}{again.output}".encode()) == set()
    assert {path.name for path in (tmp_path / "state").iterdir()} >= {NAME}
    assert leaks_below(tmp_path / "state") == set()
    for one in server.posts:
        content = server.files[one].replace(small.SERIES_UID.encode(), b"")
        assert leaks(one, content.replace(small.STUDY_UID.encode(), b"")) == set()


def test_status_and_retry(call: Any, tmp_path: Path) -> None:
    assert "no journal" in str(call("status").exception) or "no journal" in call("status").output
    journal = Journal(tmp_path / "state")
    journal.read_to(7, ["abcdef01-2", "12345678-9"])
    journal.set("abcdef01-2", "aside", text="file 1 of 3 is cut short.", look=0)
    journal.remember(trouble="Orthanc is away: refused.", answered=1700000000)
    journal.close()
    said = call("status").output
    for part in ("read to change 7", "2023-11-1", "Orthanc is away", "1 arriving, 1 set aside", "abcdef01",
                 "cut short", "hz-orthanc retry"):  # fmt: skip
        assert part in said
    assert "1 series to be tried again" in call("retry").output
    assert "2 arriving" in call("status").output


def test_once_without_an_orthanc(call: Any, server: SmallOrthanc) -> None:
    server.stop()
    done = call("--once")
    assert done.exit_code == 3 and "Orthanc is away" in done.output
    assert "nothing read yet; Orthanc answered never" in call("status").output


def test_help_is_quick() -> None:
    text, imported = help_of("orthanc")
    assert "hz-orthanc status" in text and not imported


def test_sigterm_ends_it_cleanly(server: SmallOrthanc, tmp_path: Path, tiny_bundle: Path) -> None:
    state = tmp_path / "state"
    bridge = started("orthanc", "--url", server.url, "--state", state, "--model", tiny_bundle, "--poll", 0.2)
    try:
        until(lambda: (state / "journal.sqlite3").exists() and bool(server.server), bridge)
        until(lambda: any(True for _ in (state / "work").parent.glob("work")), bridge)
        bridge.send_signal(signal.SIGTERM)
        said, errors = bridge.communicate(timeout=60)
    finally:
        bridge.kill()
        bridge.communicate()
    assert bridge.returncode == 0 and "ended" in said and "Traceback" not in said + errors

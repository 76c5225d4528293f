"""A bridge with a quick stand-in for the networks, in this process or in one that is to be killed."""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Generator, Iterable
from pathlib import Path
from typing import Any

import pydicom

import small_dicom as small
from hz_runtime.batch.stop import Stop
from hz_runtime.dicom.derived import Origin, new_uid
from hz_runtime.dicom.export import Exported
from hz_runtime.dicom.result import Result
from hz_runtime.hospital.bridge import Bridge, Pace
from hz_runtime.hospital.journal import Journal
from hz_runtime.hospital.orthanc import Orthanc, Server
from hz_runtime.hospital.outcome import Outcome
from hz_runtime.hospital.study import Study

QUICK = Pace(poll=0.02, tries=3, first=0.02, longest=0.1, patience=0.3, batch=2)


def stand_in(studies: Iterable[Study], _: threading.Event) -> Generator[tuple[Study, Outcome]]:
    """Two derived images and a report of each study, as process_each would leave them, of known UIDs."""
    for study in studies:
        yield study, _outcome(study)


def _outcome(study: Study) -> Outcome:
    files = sorted(study.source.iterdir())
    heads = [pydicom.dcmread(path, stop_before_pixels=True) for path in files]
    uids = sorted(str(head.SOPInstanceUID) for head in heads)
    if "torn" in str(heads[0].get("StudyID")):
        return Outcome("failed", ("file 1 of 3 is cut short.",), exit_code=3)
    if len(files) < 12:  # half a head is none
        outcome = Outcome("discarded", ("covers only half",))
        outcome.write(make(study.out))
        return outcome
    names = ("MR_0001.dcm", "MR_0002.dcm", "SR_age.dcm")
    for number, name in enumerate(names):
        data = small.header(0, Manufacturer="hz", PatientID="sub-1", ImageType=["DERIVED", "SECONDARY"])
        data.SOPInstanceUID = new_uid(*uids, number)
        data.SeriesInstanceUID = new_uid(*uids, name[:2])
        data.Modality = name[:2]
        data.PixelData = bytes(2048)
        data["PixelData"].VR = "OW"
        small.save(data, study.out / name)
    outcome = Outcome(
        "done", name="sub-1", result=Result(Origin("1"), None), exported=Exported(names[:2], names[2])
    )
    outcome.write(study.out)
    return outcome


def make(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


class Run:
    """One bridge over a state folder, which may have had others."""

    def __init__(self, orthanc: Any, state: Path, pace: Pace = QUICK, **server: object) -> None:
        self.lines: list[str] = []
        self.stop = Stop()
        self.process = stand_in
        timeout = float(server.pop("timeout", 5.0))  # type: ignore[arg-type]
        self.client = Orthanc(Server(orthanc.url, timeout=timeout, **server))  # type: ignore[arg-type]
        self.journal = Journal(state)
        self.bridge = Bridge(
            self.client, self.journal, state / "work",
            lambda studies, stop: self.process(studies, stop), self.lines.append, self.stop, pace,
        )  # fmt: skip

    def once(self, since: int | None = 0) -> bool:
        try:
            return self.bridge.run(since, once=True)
        finally:
            self.client.close()
            self.journal.close()

    @property
    def said(self) -> str:
        return "\n".join(self.lines)


def forked(orthanc: Any, state: Path, **server: str) -> int:
    """A process of its own that runs the bridge until it is killed."""
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore"
        )  # from 3.12 on, of forks beside threads: the child touches none of theirs
        child = os.fork()
    if child:
        return child
    try:
        Run(orthanc, state, **server).bridge.run(0)
    finally:
        os._exit(1)

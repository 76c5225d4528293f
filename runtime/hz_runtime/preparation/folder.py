"""Many heads into one folder: each one's files and record, resumed by content, none stopping the others.

The record, NAME_desc-preparation.json, is written last and holds what made the files, their sha256, the
pose and every gate's verdict. A refused scan gets a record too, and no file beside it.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from hz_runtime.errors import HzError, UnreadableScan
from hz_runtime.files import atomic_write_bytes, sha256_bytes, sha256_file
from hz_runtime.geometry import Geometry
from hz_runtime.inputs import InputScan
from hz_runtime.n4 import niimath_program
from hz_runtime.preparation.gates import Refused, Verdict
from hz_runtime.preparation.registration import rotation_degrees, scales
from hz_runtime.preparation.steps import MaskChoice, PreparedHead, prepare_head
from hz_runtime.preparation.template import Template
from hz_runtime.results import DONE_BEFORE, NOT_REACHED, ScanResult, to_json
from hz_runtime.resume import Record, fingerprint, intact, read_record
from hz_runtime.runlog import LOG_NAME, RunLog
from hz_runtime.stages import failure
from hz_runtime.volume import Volume, read_volume, write_volume

MNI_CODE = 4  # NIfTI xform code of MNI152 coordinates
Mask = NDArray[np.bool_]


def brain_suffix(template: Template) -> str:
    """What follows a scan's name in the brain that hz-run reads."""
    return f"_space-{template.name}_res-2_desc-brain_T1w.nii.gz"


@dataclass(frozen=True)
class Preparation:
    """How a batch is prepared.

    dof, brain_mask : as for `steps.prepare_head`; brain_mask may also be the path of a mask on the grid of
    the batch's only scan.  threads : of each scan's registration.  overwrite : redo what is done.
    """

    dof: Literal[6, 12] = 6
    brain_mask: MaskChoice | Path = "auto"
    threads: int = 1
    overwrite: bool = False

    def fingerprint(self) -> str:
        """sha256 hex of what shapes a result."""
        mask = sha256_file(self.brain_mask) if isinstance(self.brain_mask, Path) else self.brain_mask
        return fingerprint({"preparation": 1, "dof": self.dof, "brain_mask": mask})


@dataclass(frozen=True, eq=False)
class HeadFolder:
    """An output folder, the template and the choices of one run; `prepare` is safe from several threads.

    Raises UsageError where niimath is not installed.
    """

    out: Path
    template: Template
    choices: Preparation
    made_by: str = field(init=False)  # `Preparation.fingerprint`

    def __post_init__(self) -> None:
        niimath_program("Preparing heads")  # missing, it would fail every scan with the same line
        object.__setattr__(self, "made_by", self.choices.fingerprint())

    def run(
        self, scans: Sequence[InputScan], workers: int, stop: threading.Event | None = None
    ) -> Iterator[ScanResult]:
        """The result of every scan, as they come; after `stop` is set those not begun are skipped."""
        stop = stop or threading.Event()

        def one(scan: InputScan) -> ScanResult:
            if stop.is_set():
                return ScanResult(scan.label, scan.name, "skipped", NOT_REACHED)
            return self.prepare(scan)

        with ThreadPoolExecutor(workers, "head") as pool:
            for done in as_completed([pool.submit(one, scan) for scan in scans]):
                yield done.result()

    def prepare(self, scan: InputScan) -> ScanResult:
        """One scan, from file to files; whatever goes wrong with it becomes its result."""
        sha256 = None
        try:
            if not scan.path.is_file():
                raise UnreadableScan(f"{scan.path.name}: no such file.", "Check the name.")
            if not self.choices.overwrite and (before := self._done_before(scan)):
                return before
            volume = read_volume(scan.path)
            sha256 = volume.sha256
            head = prepare_head(
                volume,
                self.template,
                dof=self.choices.dof,
                brain_mask=self._mask(),
                threads=self.choices.threads,
            )
            outputs = self._write(scan, volume, head)
            return ScanResult(
                scan.label, scan.name, "ok", outputs=outputs, sha256=sha256, seconds=head.seconds
            )  # fmt: skip
        except Exception as error:
            reason, trace = failure(error, scan, self.out)
            if trace:
                RunLog(self.out / LOG_NAME).write(f"{scan.label}\n{trace}")
            with suppress(HzError, OSError):
                self._write_refusal(scan, sha256, reason, error)
            return ScanResult(scan.label, scan.name, "failed", reason, sha256=sha256)

    def record_name(self, scan: InputScan) -> str:
        return f"{scan.name}_desc-preparation.json"

    def output_names(self, scan: InputScan) -> tuple[str, ...]:
        """Names of a scan's files: template-space brain and mask, native ones, transform."""
        brain = brain_suffix(self.template)
        return (
            scan.name + brain,
            scan.name + brain.replace("_T1w", "_mask"),
            f"{scan.name}_desc-brain_T1w.nii.gz",
            f"{scan.name}_desc-brain_mask.nii.gz",
            f"{scan.name}_from-T1w_to-{self.template.name}_mode-image_xfm.json",
        )

    def _mask(self) -> MaskChoice | Mask:
        choice = self.choices.brain_mask
        return read_volume(choice).data > 0 if isinstance(choice, Path) else choice

    def _done_before(self, scan: InputScan) -> ScanResult | None:
        record = read_record(self.out / self.record_name(scan))
        if record is None or record.status != "ok" or record.fingerprint != self.made_by:
            return None
        if record.bundle != self.template.sha256 or record.input_sha256 != sha256_file(scan.path):
            return None
        if not intact(self.out, record):
            return None
        names = tuple(record.outputs)
        return ScanResult(
            scan.label, scan.name, "skipped", DONE_BEFORE, names, sha256=record.input_sha256, recorded="ok"
        )

    def _write(self, scan: InputScan, volume: Volume, head: PreparedHead) -> tuple[str, ...]:
        names = self.output_names(scan)
        grid = Geometry.from_affine(self.template.mask.shape, self.template.affine, code=MNI_CODE)
        own = volume.geometry
        transform = to_json(_transform(head, self.template))
        hashes = [
            write_volume(self.out / names[0], head.template_brain, grid),
            _write_mask(self.out / names[1], head.template_mask, grid),
            write_volume(self.out / names[2], head.brain, own),
            _write_mask(self.out / names[3], head.mask, own),
            sha256_bytes(transform),
        ]
        atomic_write_bytes(self.out / names[4], transform)
        outputs = {
            name: {"bytes": (self.out / name).stat().st_size, "sha256": sha256}
            for name, sha256 in zip(names, hashes, strict=True)
        }
        record = self._record(volume.sha256, "ok", outputs)
        self._write_record(scan, record, head.verdicts, {"brain_mask": head.how, "dof": head.dof})
        return names

    def _write_refusal(self, scan: InputScan, sha256: str | None, reason: str, error: Exception) -> None:
        for name in self.output_names(scan):  # an earlier run's, made of another scan or another way
            (self.out / name).unlink(missing_ok=True)
        verdicts = error.verdicts if isinstance(error, Refused) else ()
        record = self._record(sha256 or "", "failed", {})
        self._write_record(scan, record, verdicts, {"reason": reason})

    def _record(self, sha256: str, status: str, outputs: Mapping[str, Mapping[str, Any]]) -> Record:
        return Record(sha256, self.template.sha256, self.made_by, status, (), None, None, outputs, None)

    def _write_record(
        self, scan: InputScan, record: Record, verdicts: Sequence[Verdict], more: Mapping[str, Any]
    ) -> None:
        content = {
            "Sources": [scan.label],
            **more,
            "gates": [verdict.to_dict() for verdict in verdicts],
            "hz": record.to_dict(),
        }
        atomic_write_bytes(self.out / self.record_name(scan), to_json(content))


def _write_mask(path: Path, mask: Mask, geometry: Geometry) -> str:
    return write_volume(path, mask.astype(np.float32), geometry)


def _transform(head: PreparedHead, template: Template) -> dict[str, Any]:
    return {
        "from": "T1w world coordinates, RAS mm",
        "to": f"{template.name} world coordinates, RAS mm",
        "matrix": [[float(f"{value:.9g}") for value in row] for row in head.pose],
        "dof": head.dof,
        "template": {"name": template.name, "sha256": template.sha256},
        "similarity": round(head.similarity, 4),
        "rotation_degrees": round(rotation_degrees(head.pose), 3),
        "scales": [round(scale, 4) for scale in scales(head.pose)],
        "engine": "niimath",
    }


def summary(out: Path, results: Sequence[ScanResult]) -> str:
    """Write preparation.tsv; the line that a run ends with."""
    lines = ["\t".join(("input", "status", "reason"))]
    lines += ["\t".join((r.input, r.status, " ".join(r.reason.split()))) for r in results]
    atomic_write_bytes(out / "preparation.tsv", ("\n".join(lines) + "\n").encode())
    counts = {status: sum(r.status == status for r in results) for status in ("ok", "skipped", "failed")}
    told = [f"{n} {'done before' if s == 'skipped' else s}" for s, n in counts.items() if n]
    return f"{len(results)} scan{'' if len(results) == 1 else 's'}: {', '.join(told)}"

"""The folder of prepared heads: each one's files and record, resumed by content.

The record, NAME_desc-preparation.json, is written last and holds what made the files, their sha256, the
pose and every gate's verdict. A refused scan gets a record too, and no file beside it. What fails for
another reason than the scan itself (a disk, a share, memory) takes no earlier result away. Which scans there
are, and that several are prepared at once, is `prepare_run`'s.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from hz_runtime.batch.failures import blames_the_scan, failure
from hz_runtime.batch.inputs import InputScan
from hz_runtime.batch.log import RunLog
from hz_runtime.errors import HzError
from hz_runtime.io.atomic import atomic_write_bytes, sha256_bytes, sha256_file, sync_folder, write_changed
from hz_runtime.io.contrast_agent import contrast_flags
from hz_runtime.io.json_text import to_json
from hz_runtime.io.volume import Volume, read_volume, write_volume
from hz_runtime.model_space.image_quality import image_quality, quality_flags
from hz_runtime.preparation.preparer import Preparer, preparation_metadata, step_seconds
from hz_runtime.preparation.steps import PreparedHead
from hz_runtime.preparation.template import Template
from hz_runtime.results.prediction import Prediction
from hz_runtime.results.record import (
    Record,
    fingerprint,
    intact,
    read_record,
    require_results_fetched,
)
from hz_runtime.results.scan_result import DONE_BEFORE, ScanResult

LOG_NAME = "hz-prepare.log"
Measures = tuple[Mapping[str, Any], ...]  # of image quality, `Quality.to_dict`


def brain_suffix(template: Template) -> str:
    """What follows a scan's name in the brain that hz-run reads."""
    return f"_space-{template.name}_res-2_desc-brain_T1w.nii.gz"


@dataclass(frozen=True, eq=False)
class HeadFolder:
    """An output folder, and what prepares heads into it; `prepare` is safe from several threads.

    log : of the run, released by what is written.  overwrite : redo what is done.
    """

    out: Path
    preparer: Preparer
    log: RunLog
    overwrite: bool = False

    @property
    def template(self) -> Template:
        return self.preparer.template

    @cached_property
    def _made_by(self) -> str:
        return fingerprint({"preparation": self.preparer.identity})

    def prepare(self, scan: InputScan) -> ScanResult:
        """One scan, from file to files; whatever goes wrong with it becomes its result."""
        sha256 = None
        try:
            scan.check()
            if not self.overwrite and (before := self._done_before(scan)):
                return before
            volume = read_volume(scan.path)
            sha256 = volume.sha256
            head = self.preparer(volume)
            measured = image_quality(replace(volume, data=head.brain, missing=None), corrected=True)
            flags = (*head.flags, *contrast_flags(scan.path), *quality_flags(measured))
            quality = tuple(one.to_dict() for one in measured)
            outputs = self._write(scan, volume, head, flags, quality)
            return ScanResult(
                scan.label,
                scan.name,
                "ok",
                "; ".join(flags),
                outputs,
                flags=flags,
                sha256=sha256,
                seconds=step_seconds(head),
                gates=tuple(verdict.to_dict() for verdict in head.verdicts),
                quality=quality,
            )
        except Exception as error:
            reason, trace = failure(error, scan, self.out, LOG_NAME)
            if trace:
                self.log.write(f"{scan.label}\n{trace}")
            with suppress(HzError, OSError):
                if scan.path.is_file() and (blames_the_scan(error) or not self._holds(scan)):
                    self._write_refusal(scan, sha256, reason, error)
            gates = tuple(getattr(error, "gates", ()))
            return ScanResult(scan.label, scan.name, "failed", reason, sha256=sha256, gates=gates)

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

    def _holds(self, scan: InputScan) -> bool:
        """Whether an earlier result is there, however it was made and by whatever version."""
        path = self.out / self.record_name(scan)
        record = read_record(path)
        return os.path.lexists(path) if record is None else record.status == "ok"

    def _done_before(self, scan: InputScan) -> ScanResult | None:
        require_results_fetched(self.out, [self.record_name(scan)])
        record = read_record(self.out / self.record_name(scan))
        if record is None or record.status != "ok" or record.fingerprint != self._made_by:
            return None
        if record.bundle != self.template.sha256 or record.input_sha256 != sha256_file(scan.path):
            return None
        require_results_fetched(self.out, record.outputs)
        if not intact(self.out, record):
            return None
        names = tuple(record.outputs)
        return ScanResult(
            scan.label,
            scan.name,
            "skipped",
            DONE_BEFORE,
            names,
            flags=record.flags,
            sha256=record.input_sha256,
            recorded="ok",
            gates=record.gates,
            quality=record.quality,
        )

    def _write(
        self,
        scan: InputScan,
        volume: Volume,
        head: PreparedHead,
        flags: tuple[str, ...],
        quality: Measures,
    ) -> tuple[str, ...]:
        names = self.output_names(scan)
        grid, own = self.preparer.geometry, volume.geometry
        description = preparation_metadata(self.preparer, head)
        transform = to_json(description.pop("transform"))  # has a file of its own
        with self._replacing(scan) as made:
            hashes = [
                write_volume(made / names[0], head.template_brain, grid),
                write_volume(made / names[1], head.template_mask, grid, dtype="uint8"),
                write_volume(made / names[2], head.brain, own),
                write_volume(made / names[3], head.mask, own, dtype="uint8"),
                sha256_bytes(transform),
            ]
            atomic_write_bytes(made / names[4], transform)
            outputs = {
                name: {"bytes": (made / name).stat().st_size, "sha256": sha256}
                for name, sha256 in zip(names, hashes, strict=True)
            }
            self._write_record(
                made, scan, self._record(volume.sha256, "ok", outputs, flags, quality), description
            )
        return names

    @contextmanager
    def _replacing(self, scan: InputScan) -> Iterator[Path]:
        """A folder for a scan's files and record; they come into the output folder together at the end.

        So a disk that fills up between two files leaves an earlier result as it is. Raises OSError.
        """
        made = self.out / f".{scan.name}.hz-prepare"
        shutil.rmtree(made, ignore_errors=True)  # of a run that was killed
        made.mkdir()
        try:
            yield made
            record = self.record_name(scan)
            (self.out / record).unlink(missing_ok=True)  # from here on an earlier result is no longer claimed
            for name in (*self.output_names(scan), record):
                os.replace(made / name, self.out / name)
            sync_folder(self.out)
        finally:
            shutil.rmtree(made, ignore_errors=True)

    def _write_refusal(self, scan: InputScan, sha256: str | None, reason: str, error: Exception) -> None:
        for name in self.output_names(scan):  # an earlier run's, made of another scan or another way
            (self.out / name).unlink(missing_ok=True)
        record = self._record(sha256 or "", "failed", {})
        more = {"reason": reason, "gates": getattr(error, "gates", ())}
        self._write_record(self.out, scan, record, more)

    def _record(
        self,
        sha256: str,
        status: str,
        outputs: Mapping[str, Mapping[str, Any]],
        flags: tuple[str, ...] = (),
        quality: Measures = (),
    ) -> Record:
        made = (sha256, self.template.sha256, self._made_by)
        return Record(*made, status, flags, Prediction(), outputs, quality=quality)

    def _write_record(self, folder: Path, scan: InputScan, record: Record, more: Mapping[str, Any]) -> None:
        content = {"Sources": [scan.label], **more, "hz": record.to_dict()}
        if write_changed(folder / self.record_name(scan), to_json(content)):
            self.log.release()

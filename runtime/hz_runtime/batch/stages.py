"""What happens to one scan: read, prepare, infer, draw, write. Each step knows nothing of threads or queues.

A step takes a scan as the one before left it and gives it on as `scan_stages` types it; it raises when the
scan cannot go on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from hz_runtime.batch.beside import Beside
from hz_runtime.batch.brain import brain_of
from hz_runtime.batch.failures import blames_the_scan
from hz_runtime.batch.inputs import InputScan
from hz_runtime.batch.output_names import Grid, OutputNames, Space
from hz_runtime.batch.scan_stages import DrawnScan, InferredScan, OnGrid, PreparedScan, ReadScan, Ticket
from hz_runtime.batch.sidecar import engine_metadata, sidecar_bytes, sidecar_metadata
from hz_runtime.batch.written_files import WrittenFiles
from hz_runtime.bundle.age_calibration import age_flags, known_age_flags
from hz_runtime.errors import HzError
from hz_runtime.io.atomic import sha256_file
from hz_runtime.io.contrast_agent import contrast_flags
from hz_runtime.io.volume import Geometry, ReadLimits, Volume, read_volume, volume_bytes
from hz_runtime.model_space.guided_filter import native_harmonized
from hz_runtime.model_space.image_quality import image_quality, quality_flags
from hz_runtime.model_space.outliers import with_outlier_flags
from hz_runtime.model_space.recipe import (
    ModelInput,
    Recipe,
    header_flags,
    shape_alone,
    unregistered_flags,
)
from hz_runtime.results.prediction import Answers, Prediction
from hz_runtime.results.record import (
    Record,
    fingerprint,
    intact,
    read_record,
    require_results_fetched,
)
from hz_runtime.results.scan_result import DONE_BEFORE, ScanResult

if TYPE_CHECKING:
    from hz_runtime.batch.first_scan import FirstScan
    from hz_runtime.bundle.age_calibration import AgeInterval
    from hz_runtime.bundle.store import Bundle
    from hz_runtime.inference.predictors import AgePredictor, Ages, DiagnosisPredictor, Harmonizer
    from hz_runtime.preparation.preparer import Preparer

F32 = NDArray[np.float32]


@dataclass(frozen=True)
class Stages:
    """The steps over one bundle and one output folder. Safe to call from several threads.

    preparer : takes raw heads to brains; None for scans that are skull-stripped already.
    first : a scan that was begun with before; None for none.  alone : there is but one scan.
    """

    bundle: Bundle
    recipe: Recipe
    harmonizer: Harmonizer
    predictor: AgePredictor | None
    out: Path
    space: Space
    dtype: Literal["int16", "float32"]
    figures: bool
    overwrite: bool
    options: Mapping[str, Any]
    batch: int
    limits: ReadLimits | None = None
    diagnosis: DiagnosisPredictor | None = None
    preparer: Preparer | None = None
    first: FirstScan | None = None
    alone: bool = False

    @cached_property
    def names(self) -> OutputNames:
        return OutputNames(self.recipe, self.space)

    # Reading

    def read(self, ticket: Ticket) -> ReadScan | ScanResult:
        """The scan; or the result of an earlier run, when that is complete and fits."""
        path = ticket.scan.path
        ticket.scan.check()
        brain = self.first.take(path) if self.first else None
        if not self.overwrite and (before := self._done_before(ticket)):
            return before
        volume = brain.read if brain else read_volume(path, self.limits)
        ticket.voxels = int(volume.data.size)
        return ReadScan(ticket, volume, brain)

    def _done_before(self, ticket: Ticket) -> ScanResult | None:
        scan = ticket.scan
        require_results_fetched(self.out, [self.names.record(scan)])
        record = read_record(self.out / self.names.record(scan))
        if (
            record is None
            or record.bundle != self.bundle.id
            or record.fingerprint != fingerprint(self.options)
            or (self.figures and record.figure is None)
            or record.input_sha256 != sha256_file(scan.path)
            or not set(self.names.volumes(scan)) <= set(record.outputs)
        ):
            return None
        require_results_fetched(self.out, record.outputs)
        if not intact(self.out, record):
            return None
        listed = self.names.listed(scan)
        flags = (*record.flags, *self._known_age_flags(ticket.age, record.prediction))
        return ScanResult(
            input=scan.label,
            name=scan.name,
            status="skipped",
            reason="; ".join([DONE_BEFORE + self._by_another(record.engine), *flags]),
            outputs=tuple(n for n in listed if n in record.outputs or n.endswith(".json")),
            figure=record.figure,
            prediction=record.prediction,
            age=ticket.age,
            flags=flags,
            sha256=record.input_sha256,
            recorded="flagged" if flags else record.status,
            gates=record.gates,
            quality=record.quality,
        )

    def _by_another(self, engine: Mapping[str, str] | None) -> str:
        """Said of an earlier result where this run's engine would have rounded it otherwise."""
        if engine in (None, engine_metadata(self.harmonizer.backend)):
            return ""
        return f", by another engine ({', '.join(map(str, engine.values()))})"

    def withdraw(self, scan: InputScan, error: BaseException) -> None:
        """Remove what an earlier run made of a scan that now fails for its own sake: no result means none.

        A share that is gone or a full disk says nothing of the scan, and takes nothing away. Raises nothing.
        """
        with suppress(OSError):  # a share may have gone stale by now, so that even asking for the scan fails
            if not blames_the_scan(error) or not scan.path.is_file():
                return
            for name in (*reversed(self.names.listed(scan)), self.names.figure(scan)):
                with suppress(OSError):
                    (self.out / name).unlink()

    # Preparing

    def prepare(self, read: ReadScan) -> PreparedScan:
        """Bring the scan onto the network's grid; a raw head by way of the template's space."""
        if self.preparer is None:
            brain = read.brain or brain_of(read.volume, self.recipe, self.bundle.statistics)
            read.ticket.quality = brain.quality
            return PreparedScan(read.ticket, brain.volume, self._scored(OnGrid(brain.model_input)))
        volume, grid = self._through_template(read.ticket, read.volume, self.preparer)
        read.ticket.quality = image_quality(volume, corrected=True)
        return PreparedScan(read.ticket, volume, self._scored(grid))

    def _through_template(self, ticket: Ticket, volume: Volume, preparer: Preparer) -> tuple[Volume, OnGrid]:
        from hz_runtime.preparation.preparer import preparation_metadata, step_seconds

        head = preparer(volume)
        preparation = preparation_metadata(preparer, head)
        ticket.gates = tuple(preparation["gates"])
        ticket.seconds.update(step_seconds(head))
        # From here on the scan is its brain. Zero means outside, so that a voxel inside that measured nothing
        # must not have it.
        least = np.finfo(np.float32).tiny
        head.brain[head.mask & (head.brain < least)] = least
        # Raw heads are compared with training scans without their fields, too, or by their shape alone.
        usual = self.bundle.statistics_n4 or shape_alone(self.bundle.statistics)
        found = preparer.onto_grid(head, self.recipe, usual)
        in_template = Geometry.from_affine(
            found.grid.shape, found.grid_affine, code=preparer.geometry.sform_code
        )
        in_scan = replace(
            found,
            grid_affine=np.linalg.inv(head.pose) @ found.grid_affine,
            flags=(*found.flags, *header_flags(volume)),  # the brain on the template's grid has none left
        )
        return replace(volume, data=head.brain, missing=None), OnGrid(in_scan, preparation, in_template)

    @property
    def reference(self) -> Mapping[str, Any] | None:
        """Of the training scans, prepared as this run's are; None where the bundle holds no such one."""
        return self.bundle.cohort.get("reference" if self.preparer is None else "reference_n4")

    def _scored(self, grid: OnGrid) -> OnGrid:
        """With a flag where the scan is unlike those that the bundle was made from."""
        return replace(grid, model_input=with_outlier_flags(grid.model_input, self.reference))

    # Inference

    def infer(self, scans: Sequence[PreparedScan]) -> list[InferredScan]:
        """Run the networks on up to `batch` scans.

        Always in batches of one size, filled up with zeros: engines pick their arithmetic by shape, so
        that a scan's result would else depend on which others happened to be waiting. (Slice-wise networks
        do the same with a scan's slices, see `slice_wise`.)
        """
        batch = np.zeros((max(self.batch, len(scans)), *self.recipe.grid_shape), np.float32)  # (N, D, H, W)
        for given, scan in zip(batch, scans, strict=False):
            given[...] = scan.on_grid.model_input.grid
        harmonized = np.asarray(self.harmonizer(batch), np.float32)
        engine = engine_metadata(self.harmonizer.backend)
        ages = self.predictor(harmonized) if self.predictor else None
        corrects = self.predictor is not None and self.predictor.bias is not None
        probabilities = self.diagnosis(harmonized) if self.diagnosis else None
        found = []
        for row, scan in enumerate(scans):
            if not np.isfinite(harmonized[row]).all():
                raise HzError(
                    "the network gave non-finite values for this scan.", "Try --backend onnxruntime-cpu."
                )
            grid = np.clip(harmonized[row], 0.0, 1.0)
            measured, no_age = self._measured(scan, grid, ages, row)
            answers = Answers(
                measured.on_grid.model_input, grid, row, None if no_age else ages, corrects, probabilities
            )
            found.append(InferredScan(measured, grid, Prediction.of(answers), engine, no_age))
        return found

    def _measured(
        self, scan: PreparedScan, harmonized: F32, ages: Ages | None, row: int
    ) -> tuple[PreparedScan, tuple[str, ...]]:
        """The scan with what decides whether it gets an age among its features, and why it gets none."""
        if self.predictor is None:
            return scan, ()
        model_input = scan.on_grid.model_input
        measures = self.predictor.measures(harmonized, model_input.grid, ages, row)
        features = {**model_input.features, **measures}
        on_grid = replace(scan.on_grid, model_input=replace(model_input, features=features))
        return replace(scan, on_grid=on_grid), self.predictor.no_age(measures)

    # Writing

    def draw(self, scan: InferredScan) -> DrawnScan:
        """The volumes and the figure to write, after which the scan's own voxels are not needed."""
        volume, on_grid, harmonized = scan.prepared.volume, scan.prepared.on_grid, scan.harmonized
        model_input = on_grid.model_input
        native = None
        if "native" in self.names.grids:
            native = native_harmonized(volume, model_input, harmonized, self.recipe)
        volumes: dict[Grid, tuple[F32, Geometry]] = {}
        if native is not None:
            volumes["native"] = (native, volume.geometry)
        if "model" in self.names.grids:
            geometry = on_grid.geometry or Geometry.from_affine(harmonized.shape, model_input.grid_affine)
            volumes["model"] = (harmonized, geometry)
        return DrawnScan(
            ticket=scan.ticket,
            on_grid=on_grid,
            prediction=scan.prediction,
            engine=scan.engine,
            volumes=volumes,
            figure=self._drawing(partial(self._figure, volume, model_input, native, harmonized)),
            input_sha256=volume.sha256,
            no_age=scan.no_age,
        )

    def _drawing(self, draw: Callable[[], bytes | None]) -> Callable[[], bytes | None]:
        """What gives the figure: drawn beside what follows where no other scan wants the core, else now, so
        that the scan's voxels go."""
        if self.alone:
            return Beside(draw, "hz-figure").result
        drawn = draw()
        return lambda: drawn

    def _figure(
        self, volume: Volume, model_input: ModelInput, native: F32 | None, harmonized: F32
    ) -> bytes | None:
        if not self.figures:
            return None
        from hz_runtime.report import figure_data

        return figure_data(volume, model_input, native, harmonized).to_bytes()

    def write(self, drawn: DrawnScan) -> ScanResult:
        """Write the volumes, the figure and last the commit record; on failure nothing stays behind."""
        scan = drawn.ticket.scan
        pictures = {
            self.names.volume(scan, grid): volume_bytes(*drawn.volumes[grid], dtype=self.dtype)
            for grid in self.names.grids
        }
        if (figure := drawn.figure()) is not None:
            pictures[self.names.figure(scan)] = figure
        record = self.names.record(scan)
        with suppress(FileNotFoundError):
            (self.out / record).unlink()  # from here on an earlier result is no longer claimed
        files = WrittenFiles(self.out)
        try:
            for name, data in pictures.items():
                files.add(name, data)
            first = self.names.grids[0] if self.names.grids else None
            for grid in self.names.grids[1:]:
                files.add(self.names.sidecar(scan, grid), sidecar_bytes(self._sidecar(drawn, grid)))
            return self._commit(drawn, files, self._sidecar(drawn, first))
        except BaseException:
            files.remove()
            raise

    def _sidecar(self, drawn: DrawnScan, grid: Grid | None) -> dict[str, Any]:
        return sidecar_metadata(drawn, grid, self.bundle, self.recipe, self.options)

    def _commit(self, drawn: DrawnScan, files: WrittenFiles, sidecar: Mapping[str, Any]) -> ScanResult:
        """Write the commit record, in the first volume's sidecar; the scan's result."""
        ticket, scan, prediction = drawn.ticket, drawn.ticket.scan, drawn.prediction
        own = self._flags(drawn)
        # What is known of the person is no part of a record: another run may know better.
        flags = (*own, *self._known_age_flags(ticket.age, prediction))
        status: Literal["ok", "flagged"] = "flagged" if flags else "ok"
        figure = self.names.figure(scan) if self.figures else None
        interval = self._interval(prediction)
        record = Record(
            drawn.input_sha256,
            self.bundle.id,
            fingerprint(self.options),
            "flagged" if own else "ok",
            own,
            prediction,
            files.outputs,
            figure,
            age_interval_coverage=None if interval is None else interval.level,
            quality=tuple(quality.to_dict() for quality in ticket.quality),
        )
        files.add(self.names.record(scan), sidecar_bytes({**sidecar, "hz": record.to_dict()}))
        return ScanResult(
            input=scan.label,
            name=scan.name,
            status=status,
            reason="; ".join(flags),
            outputs=self.names.listed(scan),
            figure=figure,
            prediction=prediction,
            age=ticket.age,
            flags=flags,
            sha256=drawn.input_sha256,
            seconds=ticket.seconds,
            gates=ticket.gates,
            quality=record.quality,
        )

    def _flags(self, drawn: DrawnScan) -> tuple[str, ...]:
        """All that is to be said about a scan before its results are used, but for its known age."""
        ticket = drawn.ticket
        flags = [
            *drawn.on_grid.model_input.flags,
            *contrast_flags(ticket.scan.path),
            *quality_flags(ticket.quality),
        ]
        taken_as_is = unregistered_flags(self.recipe) if self.preparer is None else ()
        if self.predictor is not None:
            flags += drawn.no_age or age_flags(drawn.prediction.age, self.bundle.cohort.get("age_range"))
        if self.diagnosis is not None and drawn.prediction.diagnosis_probability is None:
            flags.append("the diagnosis network gave no number")
        interval = self._interval(drawn.prediction)
        if interval is None:
            return (*flags, *taken_as_is)
        flags += interval.site_flags(drawn.prediction.age_interval)
        # That of a site whose own brains were taken as they are was made for such scans.
        for_brains = interval.site is not None and not interval.site.raw_heads
        doubtful = flags if for_brains else (*flags, *taken_as_is)
        return (*flags, *taken_as_is, *interval.caveat(doubtful))

    def _known_age_flags(self, known: float | None, prediction: Prediction) -> tuple[str, ...]:
        """Where the person's known age contradicts what was predicted."""
        age_range, interval = self.bundle.cohort.get("age_range"), self._interval(prediction)
        return known_age_flags(known, prediction.age, prediction.age_interval, age_range, interval)

    def _interval(self, prediction: Prediction) -> AgeInterval | None:
        """The bundle's interval, where the scan's age has one."""
        return self.predictor.interval if self.predictor and prediction.age_interval else None

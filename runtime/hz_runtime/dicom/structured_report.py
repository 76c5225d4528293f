"""Predicted ages as an Enhanced SR document, template TID 1500.

It says what was measured, on which images, by which algorithm; it is partial, preliminary and unverified,
because nobody has looked at it, and it goes into the source's study: it is as identifying as the source.
No standard has a code for a predicted brain age, so the codes are hz's own, under 99HZ.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hz_runtime.dicom import deidentify as de
from hz_runtime.dicom.convert import make_folder
from hz_runtime.dicom.deidentify import listed
from hz_runtime.dicom.derived import (
    PATIENT_AND_STUDY,
    RESEARCH,
    SERIES_NUMBER_ADDED,
    TYPE_2,
    Origin,
    new_uid,
    study_of,
    taken_out,
)
from hz_runtime.dicom.encoding import encoded
from hz_runtime.dicom.export_folder import earlier_export
from hz_runtime.dicom.series import Series
from hz_runtime.errors import UsageError
from hz_runtime.io.atomic import atomic_write_bytes
from hz_runtime.results.prediction import Prediction

SCHEME = "99HZ"
REPORT_NAME = "SR_age.dcm"
_IDENTIFYING = listed("StudyInstanceUID SeriesInstanceUID SeriesNumber Modality")


@dataclass(frozen=True)
class PredictedAge:
    """The ages of a prediction, in years, and what a report says about how they were computed.

    coverage : nominal coverage of its interval, 0 to 1, or None.
    engine : what computed it, for the record; may be empty.
    """

    prediction: Prediction
    coverage: float | None = None
    engine: str = ""

    @property
    def numbers(self) -> list[tuple[str, str, float]]:
        """(code, meaning, years) of what there is."""
        low, high = self.prediction.age_interval or (None, None)
        found = (
            ("brain-age", "Predicted brain age", self.prediction.age_raw),
            ("brain-age-corr", "Predicted brain age, bias corrected", self.prediction.age_corrected),
            ("brain-age-low", "Predicted brain age, lower limit", low),
            ("brain-age-high", "Predicted brain age, upper limit", high),
        )
        return [(code, meaning, years) for code, meaning, years in found if years is not None]


def write_report(
    age: PredictedAge,
    series: Series,
    out: str | os.PathLike[str],
    origin: Origin,
    keep_ids: bool = False,
    salt: str = de.SALT,
) -> Path:
    """Write SR_age.dcm to the folder `out`.

    keep_ids, salt : as of `write_derived`.
    Raises UsageError (extra not installed, an age that is not finite, an export of another series in `out`),
    HzError (disk).
    """
    content = encode_report(age, series, origin, keep_ids, salt)
    target = Path(out)
    earlier_export(target, series)
    make_folder(target)
    atomic_write_bytes(target / REPORT_NAME, content)
    return target / REPORT_NAME


def encode_report(age: PredictedAge, series: Series, origin: Origin, keep_ids: bool, salt: str) -> bytes:
    """The content of the file of `write_report`, which raises as this does."""
    de.need("pydicom", "highdicom")
    if not all(math.isfinite(years) for _, _, years in age.numbers):
        raise UsageError("the predicted age is not a finite number.", "Run hz-run again on this scan.")
    with de.quiet():
        return encoded(_document(age, series, origin, keep_ids, salt))


def _document(age: PredictedAge, series: Series, origin: Origin, keep_ids: bool, salt: str) -> Any:
    from highdicom.sr import CodedConcept, EnhancedSR
    from pydicom.dataset import Dataset

    evidence = [_evidence(series, keep_ids, salt)]
    key = origin.key(series)
    report = EnhancedSR(
        evidence=evidence,
        content=_report(age, series, origin, CodedConcept)[0],
        series_instance_uid=new_uid("report series", *key),
        series_number=SERIES_NUMBER_ADDED + 1 + int(de.number(evidence[0].get("SeriesNumber")) or 0) % 10**6,
        sop_instance_uid=new_uid("report", *key),
        instance_number=1,
        manufacturer="hz",
        is_complete=False,
        is_final=False,
        is_verified=False,
    )
    _name_others(report, _images(series)[1:])
    report.StudyInstanceUID = study_of(series, keep_ids)
    if not keep_ids:  # what a report does not copy from its evidence
        report.PatientIdentityRemoved = evidence[0].PatientIdentityRemoved
        report.DeidentificationMethod = evidence[0].DeidentificationMethod
    _signed(report, origin)
    scheme = Dataset()
    scheme.CodingSchemeDesignator = SCHEME
    scheme.CodingSchemeName = "hz private codes"
    scheme.CodingSchemeResponsibleOrganization = "hz"
    report.CodingSchemeIdentificationSequence = [scheme]
    return report


def _signed(report: Any, origin: Origin) -> None:
    report.ManufacturerModelName = "hz"
    report.SoftwareVersions = origin.software
    report.SeriesDescription = "hz predicted age, research use only"
    report.CompletionFlagDescription = f"Not reviewed. {RESEARCH}"[:64]
    day, time = origin.local
    report.ContentDate = report.InstanceCreationDate = report.SeriesDate = day
    report.ContentTime = report.InstanceCreationTime = report.SeriesTime = time
    for equipment in report.get("ContributingEquipmentSequence", ()):  # highdicom's own, of this moment
        equipment.ContributionDateTime = day + time


def _evidence(series: Series, keep_ids: bool, salt: str) -> Any:
    """The first source file, cut down to what a report takes over from it."""
    from pydicom import dcmread
    from pydicom.dataset import Dataset

    whole = dcmread(series.files[0], force=True, stop_before_pixels=True)
    cut = Dataset()
    for keyword in (*TYPE_2, *PATIENT_AND_STUDY, *_IDENTIFYING):
        if keyword in whole:
            cut[keyword] = whole[keyword]
    if not keep_ids:
        taken_out(cut, series, salt)
    for keyword in TYPE_2:
        if keyword not in cut:
            setattr(cut, keyword, None)
    if not cut.get("StudyInstanceUID"):
        cut.StudyInstanceUID = study_of(series)
    cut.SOPClassUID, cut.SOPInstanceUID = _images(series)[0]
    return cut


def _images(series: Series) -> list[tuple[str, str]]:
    """(class, instance) of its files, in slice order."""
    return list(dict.fromkeys((plane.sop_class, plane.sop_uid) for plane in series.slices))


def _name_others(report: Any, images: Sequence[tuple[str, str]]) -> None:
    """Name the other images beside the first, where that stands: highdicom would copy and search all of them
    several times over."""
    from pydicom.dataset import Dataset

    ((first,),) = (s.ReferencedSeriesSequence for s in report.CurrentRequestedProcedureEvidenceSequence)
    group = _holder(report)
    place = next(n for n, item in enumerate(group.ContentSequence) if item.ValueType == "IMAGE")
    shown, others = group.ContentSequence[place], []
    for sop_class, sop_uid in images:
        named, other = Dataset(), Dataset()
        named.ReferencedSOPClassUID, named.ReferencedSOPInstanceUID = sop_class, sop_uid
        first.ReferencedSOPSequence.append(named)
        other.update({element.tag: element for element in shown if element.VR != "SQ"})
        other.ConceptNameCodeSequence = shown.ConceptNameCodeSequence
        other.ReferencedSOPSequence = [named]
        others.append(other)
    content = list(group.ContentSequence)
    del group.ContentSequence  # highdicom's takes items of its own alone
    plain = Dataset()
    plain.ContentSequence = [*content[: place + 1], *others, *content[place + 1 :]]
    group.update(plain)


def _holder(item: Any) -> Any:
    """The item of a content tree that has images below it, or None."""
    for below in item.get("ContentSequence", ()):
        if below.ValueType == "IMAGE":
            return item
        if (found := _holder(below)) is not None:
            return found
    return None


def _report(age: PredictedAge, series: Series, origin: Origin, coded: Any) -> Any:
    from highdicom import sr
    from pydicom.sr.codedict import codes

    device = sr.ObserverContext(
        observer_type=codes.DCM.Device,
        observer_identifying_attributes=sr.DeviceObserverIdentifyingAttributes(
            uid=new_uid("device", "hz", origin.version), name="hz", manufacturer_name="hz", model_name="hz"
        ),
    )
    algorithm = sr.AlgorithmIdentification(
        name=f"hz brain age{f', bundle {origin.bundle}' if origin.bundle else ''}"[:64],
        version=origin.version,
        parameters=[
            *([f"bundle id {origin.bundle_id}"] if origin.bundle_id else []),
            *([f"engine {age.engine}"] if age.engine else []),
            *(
                [f"interval of nominal coverage {age.coverage:g}"]
                if age.coverage and age.prediction.age_interval
                else []
            ),
        ]
        or None,
    )
    brain = [sr.FindingSite(anatomic_location=coded("12738006", "SCT", "Brain"))]
    group = sr.MeasurementsAndQualitativeEvaluations(
        tracking_identifier=sr.TrackingIdentifier(
            uid=new_uid("tracking", series.uid, series.part), identifier="brain age"
        ),
        algorithm_id=algorithm,
        finding_sites=brain,
        measurements=_measurements(age, algorithm, coded),
        qualitative_evaluations=[
            sr.QualitativeEvaluation(
                name=coded("intended-use", SCHEME, "Intended use"),
                value=coded("research-only", SCHEME, RESEARCH.rstrip(".")),
            )
        ],
        source_images=[sr.SourceImageForMeasurementGroup(*_images(series)[0])],
    )
    noted = sr.TextContentItem(
        name=codes.DCM.Comment, value=origin.comment, relationship_type=sr.RelationshipTypeValues.CONTAINS
    )
    group[0].ContentSequence.append(noted)
    return sr.MeasurementReport(
        observation_context=sr.ObservationContext(observer_device_context=device),
        procedure_reported=coded("24590-2", "LN", "MR Brain"),
        imaging_measurements=[group],
    )


def _measurements(age: PredictedAge, algorithm: Any, coded: Any) -> list[Any]:
    from highdicom import sr

    years = coded("a", "UCUM", "year")
    return [
        sr.Measurement(
            name=coded(value, SCHEME, meaning), value=round(number, 2), unit=years, algorithm_id=algorithm
        )
        for value, meaning, number in age.numbers
    ]

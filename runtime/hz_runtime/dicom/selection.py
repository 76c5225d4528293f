"""Which series is the T1-weighted head: rules that a reader can check, no learning.

Refused (never taken without being asked for by number):
  not MR, not an MR image class; secondary captures, localizers, projections, maps, phase and complex images
  (ImageType, ComplexImageComponent); colour or inverted greys; burned-in annotation; slices missing, uneven,
  aslant, repeated, between those of another part of the series, or further apart than 1.1 times their
  thickness; 2D slices or gaps thicker than 3 mm, less than 90 mm covered, voxels under 0.3 mm or a matrix
  under 16.
Weighted by T1 where one of these holds:
  gradient echo (ScanningSequence GR) prepared by an inversion (SequenceVariant MP, ScanningSequence IR, or
  InversionTime 300 to 1500 ms) with TE at most 10 ms: MPRAGE, BRAVO, 3D TFE (Mugler & Brookeman 1990);
  spoiled gradient echo with TE at most 10 ms, TR at most 50 ms and a flip angle of at least 8 degrees:
  SPGR, FLASH;
  spin echo with TE at most 40 ms and TR at most 900 ms: T1 SE and SPACE;
  no sequence tags (or RM, research mode, alone), and a name that says T1, MPRAGE, MP2RAGE, BRAVO, SPGR
  or TFE.
  A name of another contrast (T2, FLAIR, SWI, DWI, BOLD, TOF, INV1 or INV2 or T1 map of an MP2RAGE...)
  overrules all of them.
Among those left the highest score wins: prepared gradient echo 3, other T1 2; 3D acquisition +2; a T1
name +1; ORIGINAL +1; contrast agent, in the header or by the name, -3; MP2RAGE's UNI -1 (its background is
noise). Ties: thinner slices, then the lower series number. Names are read here and shown nowhere.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from hz_runtime.dicom.deidentify import (
    IMAGE_TYPES,
    SCANNING_SEQUENCES,
    SEQUENCE_VARIANTS,
    listed,
    number,
    texts,
    words,
)
from hz_runtime.dicom.series import MR_CLASSES, Series
from hz_runtime.errors import UnsupportedScan, UsageError
from hz_runtime.io.contrast_agent import is_agent, names_agent

_THICKEST_MM, _THINNEST_MM, _LEAST_COVERED_MM, _LEAST_MATRIX = 3.0, 0.3, 90.0, 16
MOST_GAP = 1.1  # slice spacing over slice thickness
_NOT_A_HEAD = frozenset(
    listed(
        "SECONDARY LOCALIZER PROJECTION MIP MINIP PHASE P R I REAL IMAGINARY ADC FA TRACEW DIFFUSION "
        "PERFUSION ASL CBF FMRI MOSAIC INV1 INV2 MPR RESAMPLED REFORMATTED SUB FM"
    )
)
# Not the t1 of "visit1"; one letter may stand before it, as in Philips' sT1W.
_T1_NAME = re.compile(r"(?<![a-z])[a-z]?t1|mp2?-?rage|bravo|f?spgr|(?<![a-z])t1?tfe|tfl3d", re.IGNORECASE)
_OTHER_NAME = re.compile(
    r"(?<![a-z])[a-z]?t2|flair|swi(?![a-z])|swan(?![a-z])|dwi|dti|diff|bold|fmri|rest(?![a-z])|"
    r"(?<![a-z])p?c?asl(?![a-z])|perf|(?<![a-z])tof|angio|mra(?![a-z])|field.?map|scout|localiz|survey|"
    r"(?<![a-z])(?:pd|adc)(?![a-z])|"
    r"(?<![a-z])inv[-_ ]?[12](?![0-9])|(?<![a-z])t1[-_ ]?(?:map|images)(?![a-z])",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Verdict:
    """What the rules say of a series.

    refused : why it is never taken by itself; "" where it may be.  weighting : how it is T1-weighted, or "".
    score : to compare series that are not refused.  contrast_agent : it was made with one, by its
        header or its name.
    """

    refused: str
    weighting: str
    score: int
    contrast_agent: bool

    @property
    def eligible(self) -> bool:
        return not self.refused and bool(self.weighting)

    @property
    def reason(self) -> str:
        """In a few words, for a list."""
        if self.refused:
            return self.refused
        if not self.weighting:
            return "not T1-weighted by its sequence"
        return self.weighting + (", contrast agent" if self.contrast_agent else "")


def judge(series: Series) -> Verdict:
    """Apply the rules above to one series."""
    kinds = words(series.get("ImageType"), IMAGE_TYPES)
    weighting = _weighting(series)
    named = bool(_T1_NAME.search(_name(series)))
    contrast = is_agent(series.get("ContrastBolusAgent")) or names_agent(_name(series))
    score = 3 if weighting.startswith("inversion") else 2
    score += 2 * (series.get("MRAcquisitionType") == "3D") + named + ("ORIGINAL" in kinds)
    score -= 3 * contrast + ("UNI" in kinds)
    return Verdict(_refused(series, kinds), weighting, score, contrast)


def choose(series: Sequence[Series], wanted: int | None = None) -> Series:
    """The T1-weighted head among `series`, or the one whose `number` is `wanted`.

    Raises UsageError for a number that is not listed, UnsupportedScan where no series qualifies or the one
    asked for has no geometry.
    """
    if wanted is not None:
        found = next((s for s in series if s.number == wanted), None)
        if found is None:
            raise UsageError(f"there is no series {wanted}.", f"Give a number from 1 to {len(series)}.")
        found.placed()
        return found
    verdicts = {s.number: judge(s) for s in series}
    fit = [s for s in series if verdicts[s.number].eligible]
    if not fit:
        why = "; ".join(f"series {s.number}: {verdicts[s.number].reason}" for s in series[:8])
        raise UnsupportedScan(
            f"no series is a T1-weighted head by the rules ({why or 'no images'}).",
            "Look at them with  hz-dicom list IN  and name one:  hz-dicom convert IN --series N --out DIR",
        )
    return min(fit, key=lambda s: (-verdicts[s.number].score, round(s.spacing[2], 2), s.number))


def choose_each(series: Sequence[Series]) -> tuple[tuple[Series, ...], int]:
    """(the T1-weighted head of every study, number of studies that have none), in the order of `series`.

    Raises UnsupportedScan, as `choose`, where no study has one.
    """
    studies: dict[str, list[Series]] = {}
    for one in series:
        studies.setdefault(one.study_uid, []).append(one)
    fit = [members for members in studies.values() if any(judge(s).eligible for s in members)]
    if not fit:
        choose(series)
    return tuple(choose(members) for members in fit), len(studies) - len(fit)


def _refused(series: Series, kinds: Sequence[str]) -> str:
    if str(series.get("Modality")).strip() != "MR":
        return "not MR"
    if series.slices[0].sop_class not in MR_CLASSES:
        return "not an MR image"
    component = words(series.get("ComplexImageComponent"), IMAGE_TYPES)
    wrong = [k for k in (*kinds, *component) if k in _NOT_A_HEAD]
    if any(text.endswith("MAP") for text in texts(series.get("ImageType"))):  # Siemens' "T1 MAP"
        wrong.append("MAP")
    if wrong:
        return f"image type {wrong[0]}"
    if (number(series.get("SamplesPerPixel")) or 1) != 1:
        return "colour"
    photometric = str(series.get("PhotometricInterpretation") or "MONOCHROME2").strip()
    if photometric != "MONOCHROME2":
        return "inverted greys" if photometric == "MONOCHROME1" else "colour"
    if str(series.get("BurnedInAnnotation") or "").strip().upper() == "YES":
        return "burned-in annotation"
    return series.fault or _too_coarse(series)


def _too_coarse(series: Series) -> str:
    thick = number(series.get("SliceThickness")) or 0.0
    thickness = max(series.spacing[2], thick)
    if thickness > _THICKEST_MM + 0.01:
        return f"thick slices ({thickness:.3g} mm)"
    if thick > 0 and series.spacing[2] > MOST_GAP * thick + 0.02:
        apart = series.spacing[2]
        return f"slices of {thick:.3g} mm lie {apart:.3g} mm apart: some are missing, or there are gaps"
    covered = series.spacing[2] * series.shape[2]
    if covered < _LEAST_COVERED_MM:
        return f"covers only {covered:.0f} mm"
    if min(series.shape[:2]) < _LEAST_MATRIX or min(series.spacing) < _THINNEST_MM:
        return "matrix or voxels too small"
    return ""


def _name(series: Series) -> str:
    """What a series is called. ProtocolName counts only where there is no SeriesDescription: on GE it is the
    exam's, the same in a BRAVO and in a CUBE."""
    described = str(series.get("SeriesDescription") or "").strip() or str(series.get("ProtocolName") or "")
    return " ".join([described, *(str(series.get(k) or "") for k in ("SequenceName", "PulseSequenceName"))])


def _weighting(series: Series) -> str:
    if _OTHER_NAME.search(_name(series)):
        return ""
    sequence = words(series.get("ScanningSequence"), SCANNING_SEQUENCES)
    variant = words(series.get("SequenceVariant"), SEQUENCE_VARIANTS)
    echo, repetition, inversion, flip = (
        number(series.get(k)) for k in ("EchoTime", "RepetitionTime", "InversionTime", "FlipAngle")
    )
    echo = 0.0 if echo is None else echo
    if not set(sequence) - {"RM"}:
        return "T1 by its name" if _T1_NAME.search(_name(series)) else ""
    if "GR" in sequence:
        prepared = "MP" in variant or "IR" in sequence or 300 <= (inversion or 0) <= 1500
        if prepared and echo <= 10:
            return "inversion-prepared gradient echo"
        short = repetition is not None and repetition <= 50 and flip is not None and flip >= 8
        return "spoiled gradient echo" if "SP" in variant and short and echo <= 10 else ""
    if "SE" in sequence and repetition is not None and repetition <= 900 and echo <= 40:
        return "T1 spin echo"
    return ""

"""What may leave a DICOM file: nothing but numbers and words from the short lists below.

Free text is never copied, whatever its tag: a hospital writes names into descriptions, comments and even
model names. So this is a list of what is kept (PS3.15 E lists what to remove), and text passes only as one of
the words hz knows. Pixels are not looked at: no face is removed, no burned-in text is found.
"""

from __future__ import annotations

import hashlib
import logging
import math
import re
import threading
import warnings
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

from hz_runtime.errors import UsageError

SALT = "hz-dicom-1"  # public: see `pseudonym`
NAME_DIGITS = 12


def listed(text: str) -> tuple[str, ...]:
    """Words of a long list, as text that can be read."""
    return tuple(text.split())


# PS3.3 C.7.6.1.1.2, C.8.3.1.1.1 and what vendors add; a word outside this list is not repeated.
IMAGE_TYPES = frozenset(
    listed(
        "ORIGINAL DERIVED PRIMARY SECONDARY LOCALIZER MPR M P R I M_FFE M_SE M_IR PHASE MAGNITUDE REAL "
        "IMAGINARY FFE SE IR UNI INV1 INV2 NORM ND DIS2D DIS3D FM FIL MFSPLIT MEAN T1 T2 NONE OTHER VOLUME "
        "WATER FAT IN_PHASE OPP_PHASE PROJECTION IMAGE MIP MINIP ADC FA TRACEW DIFFUSION PERFUSION ASL CBF "
        "FMRI MOSAIC RESAMPLED REFORMATTED SUB CSA"
    )
)
MODALITIES = frozenset(listed("MR CT PT NM US CR DX XA MG OT SC SR SEG PR KO RTSTRUCT REG RWV"))
SCANNING_SEQUENCES = frozenset(("SE", "IR", "GR", "EP", "RM"))
SEQUENCE_VARIANTS = frozenset(("SK", "MTC", "SS", "TRSS", "SP", "MP", "OSP", "NONE"))
ACQUISITION_TYPES = frozenset(("2D", "3D"))
PATIENT_POSITIONS = frozenset(listed("HFP HFS HFDR HFDL FFDR FFDL FFP FFS"))
_WORDS = {
    "ScanningSequence": SCANNING_SEQUENCES,
    "SequenceVariant": SEQUENCE_VARIANTS,
    "MRAcquisitionType": ACQUISITION_TYPES,
    "PatientPosition": PATIENT_POSITIONS,
    "PatientSex": frozenset("FMO"),
    "LossyImageCompression": frozenset(("00", "01")),
}
_STAYING = {"PatientSex", "FrameOfReferenceUID", "LossyImageCompression", "LossyImageCompressionRatio"}
# The longer first where one is part of another.
_VENDORS = (
    "Siemens", "Philips", "General Electric", "GE", "Canon", "Toshiba", "Hitachi", "Fujifilm",
    "United Imaging", "UIH", "Bruker", "Hyperfine", "Esaote", "Neusoft",
)  # fmt: skip
_MODELS = (
    "Prisma_fit", "Prisma", "Skyra_fit", "Skyra", "TrioTim", "Trio", "Verio", "Vida", "Lumina", "Avanto_fit",
    "Avanto", "Aera", "Sola", "Altea", "Espree", "Symphony", "Sonata", "Terra", "Allegra", "Magnetom",
    "Biograph", "Ingenia Elition", "Ingenia Ambition", "Ingenia", "Achieva", "Intera", "Gyroscan",
    "Discovery MR750w", "Discovery MR750", "SIGNA Premier", "SIGNA Architect", "SIGNA Artist", "SIGNA HDxt",
    "SIGNA PET/MR", "SIGNA", "Optima", "Vantage", "Galan", "Titan", "Orian", "Oasis", "Echelon", "uMR",
)  # fmt: skip


def need(*packages: str) -> None:
    """Raise UsageError, naming the command that helps, where one of the extra's packages is missing."""
    from importlib.util import find_spec

    missing = [p for p in packages if find_spec(p) is None]
    if missing:
        raise UsageError(
            f"reading and writing DICOM needs {', '.join(missing)}.",
            'Install it:  pip install "hz-mri[dicom]"',
        )


class _Quiet:
    """Process-wide settings, for as long as any thread wants them: the first to come changes them, the last
    to go puts them back. Else one that goes would let another's warnings through."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._threads = 0
        self._changed = ExitStack()

    def __enter__(self) -> None:
        with self._lock:
            if not self._threads:
                self._changed.enter_context(_silenced())
            self._threads += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._threads -= 1
            if not self._threads:
                self._changed.close()


_QUIET = _Quiet()


def quiet() -> AbstractContextManager[None]:
    """Keep pydicom and highdicom from printing: their warnings quote the values they complain about.

    Values that break their VR's rules are read as they are. Changes process-wide settings while it lasts, in
    this thread or any other.
    """
    return _QUIET


@contextmanager
def _silenced() -> Iterator[None]:
    from pydicom import config

    loggers = [logging.getLogger(name) for name in ("pydicom", "highdicom")]
    before = [logger.disabled for logger in loggers]
    modes = config.settings.reading_validation_mode, config.settings.writing_validation_mode
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            for logger in loggers:
                logger.disabled = True
            config.settings.reading_validation_mode = config.IGNORE
            config.settings.writing_validation_mode = config.IGNORE
            yield
        finally:
            for logger, state in zip(loggers, before, strict=True):
                logger.disabled = state
            config.settings.reading_validation_mode, config.settings.writing_validation_mode = modes


def pseudonym(uid: str, salt: str = SALT) -> str:
    """12 hexadecimal digits that stand for a series: SHA-256 of salt, a NUL and its SeriesInstanceUID.

    With the public salt the same series has the same name everywhere, and whoever holds the UID can tell that
    a file came from it. A salt of your own, kept secret, prevents that; nobody can go back from the digits.
    """
    return hashlib.sha256(f"{salt}\0{uid}".encode()).hexdigest()[:NAME_DIGITS]


def texts(values: Any) -> tuple[str, ...]:
    """The values of an element, of whatever kind they are, as text: stripped, upper case."""
    if values is None:
        return ()
    many = hasattr(values, "__iter__") and not isinstance(values, str)
    return tuple(str(item).strip().upper() for item in (values if many else [values]))


def words(values: Any, known: Iterable[str]) -> tuple[str, ...]:
    """Those of a CS element's values that are known words, upper case, in their order."""
    allowed = set(known)
    return tuple(w for w in texts(values) if w in allowed)


def without_identity(data: Any, name: str, patient_and_study: Iterable[str]) -> None:
    """Take patient, study, dates and free text out of a pydicom Dataset that is to become a derived object.

    name : what PatientName and PatientID become.  patient_and_study : keywords that go; of them sex, frame of
    reference and lossy compression stay. What is left of the acquisition is numbers and known words. UIDs of
    the source stay, since a derived object refers to them: whoever holds the source can tell.
    """
    for keyword in (
        *patient_and_study,
        "AcquisitionDate",
        "AcquisitionTime",
        "AcquisitionNumber",
        "ScanOptions",
    ):
        if keyword in data and keyword not in _STAYING:
            delattr(data, keyword)
    for keyword, known in _WORDS.items():
        if keyword in data:
            found = words(data.get(keyword), known)
            setattr(data, keyword, list(found) if len(found) > 1 else found[0] if found else None)
    data.PatientName = data.PatientID = name
    data.PatientIdentityRemoved = "YES"
    data.DeidentificationMethod = "hz: patient, dates and free text removed; UIDs kept"


def number(value: Any) -> float | None:
    """A finite float, or None. Takes the first of several values."""
    if isinstance(value, (list, tuple)) or (hasattr(value, "__iter__") and not isinstance(value, str)):
        value = next(iter(value), None)
    try:
        found = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return found if math.isfinite(found) else None


def vendor(text: Any) -> str:
    """The maker as one of a list of names, or ""."""
    return _first(text, _VENDORS)


def model(text: Any) -> str:
    """The scanner's model as one of a list of names, or ""."""
    return _first(text, _MODELS)


def _first(text: Any, names: Iterable[str]) -> str:
    given = str(text or "")
    for name in names:
        if re.search(rf"(?<![A-Za-z]){re.escape(name)}(?![a-z])", given, re.IGNORECASE):
            return name
    return ""

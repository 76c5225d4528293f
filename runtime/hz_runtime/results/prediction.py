"""predictions.tsv: a run's answers as a table."""

from __future__ import annotations

from collections.abc import Sequence

from hz_runtime.results.scan_result import ScanResult

COLUMNS = ("input", "status", "age_raw", "age_corrected", "age", "brain_pad", "flags")
INTERVAL_COLUMNS = ("age_low", "age_high")  # after age_corrected, of bundles with a prediction interval
DIAGNOSIS_COLUMNS = ("diagnosis_probability", "probability_of")  # before flags, of bundles that diagnose


def predictions_tsv(
    scans: Sequence[ScanResult], positive: str | None = None, intervals: bool = False
) -> bytes:
    """predictions.tsv, one row a scan in input order, n/a where there is no value.

    positive : the label whose probability a diagnosis network gives; None without one, and no such columns.
    intervals : whether the bundle holds a prediction interval of the age; else there are no such columns.

    The status of a scan that an earlier run did is the one it got then, so that a resumed run's table
    equals an undisturbed one's.
    """
    limits = INTERVAL_COLUMNS if intervals else ()
    more = DIAGNOSIS_COLUMNS if positive is not None else ()
    lines = ["\t".join([*COLUMNS[:4], *limits, *COLUMNS[4:-1], *more, COLUMNS[-1]])]
    for scan in scans:
        ends = (scan.age_interval or (None, None)) if intervals else ()
        values = [scan.age_raw, scan.age_corrected, *ends, scan.age, scan.brain_pad]
        numbers = ["n/a" if v is None else f"{v:.2f}" for v in values]
        if positive is not None:
            probability = scan.diagnosis_probability
            numbers += ["n/a" if probability is None else f"{probability:.4f}", " ".join(positive.split())]
        flags = "; ".join(scan.flags) or "n/a"
        lines.append("\t".join([scan.input, scan.recorded or scan.status, *numbers, " ".join(flags.split())]))
    return ("\n".join(lines) + "\n").encode("utf-8", "backslashreplace")

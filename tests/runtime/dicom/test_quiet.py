"""pydicom's warnings quote a patient's values: they stay silent while any thread reads."""

from __future__ import annotations

import warnings

import pytest

pytest.importorskip("pydicom", reason="needs the extra dicom")

from pydicom import config

from hz_runtime.dicom.deidentify import quiet


def test_threads_that_overlap_do_not_undo_each_others_silence() -> None:
    def mode() -> int:
        return config.settings.reading_validation_mode

    before = mode()
    assert before != config.IGNORE
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        first, second = quiet(), quiet()
        first.__enter__()
        second.__enter__()
        first.__exit__(None, None, None)  # the one that came first goes first, as threads may
        assert mode() == config.IGNORE
        warnings.warn("Doe^Jane", stacklevel=1)
        assert not heard
        second.__exit__(None, None, None)
        assert mode() == before
        warnings.warn("not of a patient", stacklevel=1)
        assert [str(one.message) for one in heard] == ["not of a patient"]

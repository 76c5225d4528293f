"""The errors hz raises on purpose.

Each says what was found and where (`message`), and what to do next (`remedy`). Each class owns the
exit code a command ends with (README, "Exit codes"). Bad input never shows a traceback: commands
print `str(error)`; library users get an exception they can catch by kind.
"""

from __future__ import annotations


class HzError(Exception):
    """Something a user can act on.

    message : what was found, and where, in one line.
    remedy : the next thing to do, in one line; may be empty.
    """

    exit_code = 1

    def __init__(self, message: str, remedy: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.message}\n  {self.remedy}" if self.remedy else self.message

    @property
    def one_line(self) -> str:
        """Message and remedy on one line, for tables and logs."""
        text = f"{self.message} {self.remedy}" if self.remedy else self.message
        return " ".join(text.split())


class UsageError(HzError):
    """The command was asked for something that makes no sense; exit 2."""

    exit_code = 2


class ScanError(HzError):
    """One scan cannot be processed; the rest of the batch goes on; exit 3 at the end."""

    exit_code = 3


class UnreadableScan(ScanError):
    """The file is not a scan hz reads: wrong format, truncated, corrupt, or over the limits."""


class UnsupportedScan(ScanError):
    """A well-formed file that is not one T1-weighted volume: 4D, RGB, complex, a 2D image."""


class NoBrain(ScanError):
    """Nothing to harmonize: the volume is constant or empty, or the brain in it has holes without numbers."""


class UnpreparedScan(ScanError):
    """A program that prepares scans has no answer for it: no receive field, no map to the template."""


class ProgramDied(UnpreparedScan):
    """A program that prepares scans crashed on it or took too long: the scan's fault, or the machine's."""


class NonFiniteInput(ScanError):
    """A scan reached a network with values that are not finite."""


class GridMismatch(HzError):
    """Arrays that must share a grid do not, or one has not the shape or type that a network takes; exit 2."""

    exit_code = 2


class BundleError(HzError):
    """The bundle is damaged, was changed after export, or is of a newer schema; exit 4."""

    exit_code = 4


class BackendError(HzError):
    """A backend cannot be opened or failed to run a model; exit 5 when it was required."""

    exit_code = 5

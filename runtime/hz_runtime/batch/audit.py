"""The account of a run in an audit file: who started what, on which engine, and what became of every scan.

Records are of three kinds, tied together by `run`, a random number: "start", "scan" for every scan as it
ends, and "end"; a start without an end is a run that was killed. People are in none of them: scans and
results are named by their sha256 alone, the user by number. How the file keeps its records is
`io.hash_chain`'s.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hz_runtime.io.atomic import sha256_file
from hz_runtime.io.hash_chain import append
from hz_runtime.results.scan_result import NOT_REACHED, ScanResult
from hz_runtime.results.versions import versions

if TYPE_CHECKING:
    from hz_runtime.backends.base import Backend
    from hz_runtime.batch.stages import Stages
    from hz_runtime.bundle.store import Bundle
    from hz_runtime.results.run_report import RunReport

OWN_FILES = ("run.json", "predictions.tsv")


class Audit:
    """The records of one run in the file `path`, whose results are in the folder `out`.

    Every method raises HzError or UsageError where the record cannot be written: a run that is to be
    accounted for does not go on without.
    """

    def __init__(self, path: Path, out: Path) -> None:
        self._path, self._out = path, out
        self._run = secrets.token_hex(8)

    def start(self, stages: Stages, backends: Mapping[str, Backend], scans: int) -> None:
        """backends : by role, what runs the networks.  scans : how many there are to do."""
        self._append(
            "start",
            uid=os.getuid() if hasattr(os, "getuid") else None,
            versions=versions(),
            bundle=bundle_account(stages.bundle),
            engines={role: engine_account(backend) for role, backend in backends.items()},
            options=dict(stages.options),
            scans=scans,
        )

    def scan(self, path: Path, result: ScanResult) -> None:
        """path : of the input, hashed here where the run did not come so far."""
        if result.reason == NOT_REACHED:
            return
        digest = result.sha256
        if digest is None:
            with suppress(OSError):
                digest = sha256_file(path)
        self._append(
            "scan",
            input=digest,
            status=result.recorded or result.status,
            before=bool(result.recorded),
            gates={str(gate["gate"]): bool(gate["passed"]) for gate in result.gates},
            flags=len(result.flags),
            outputs=self._hashes(result.outputs),
        )

    def end(self, report: RunReport) -> None:
        """What became of all scans, and the run's own tables."""
        self._append("end", counts=report.counts, exit_code=report.exit_code, outputs=self._hashes(OWN_FILES))

    def _hashes(self, names: tuple[str, ...]) -> list[str]:
        """Of those files that are there, in the order of their names."""
        found = []
        for name in names:
            with suppress(OSError):
                found.append(sha256_file(self._out / name))
        return found

    def _append(self, event: str, **values: Any) -> None:
        time = datetime.now(UTC).isoformat(timespec="milliseconds")
        append(self._path, {"event": event, "run": self._run, "time": time, **values})


def bundle_account(bundle: Bundle) -> dict[str, str]:
    """Which bundle, and whose signature a trusted key has confirmed (empty: none was asked for)."""
    return {"name": bundle.name, "id": bundle.id, "signer": bundle.signer}


def engine_account(backend: Backend) -> dict[str, str]:
    """Which engine runs a network, and in which arithmetic, as the engine says it."""
    return {
        "name": backend.name,
        "version": backend.version,
        "provider": backend.provider,
        "precision": backend.precision,
        "model": backend.sha256,
    }

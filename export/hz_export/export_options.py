"""What an export is asked for; it does nothing of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from hz_export.engine_target import EngineOptions

if TYPE_CHECKING:
    from hz_runtime.bundle.signing_keys import SigningKey


@dataclass(frozen=True)
class ExportOptions:
    """How checkpoints become a bundle.

    note : a remark for the model card, such as what the scores were looked at for.
    precisions : also a graph of every network in each of these: "fp16", "bf16", "int8".
    plans : files of hz-calibrate, one a role, that int8 follows; a network without one gets no int8 file.
        Their scans are no evidence of parity.
    build : also a TensorRT engine of each of those graphs, or of the float32 ones where there are none.
    progress : draw a bar while engines are built.
    half_weights : store the float32 graphs' weights as float16.
    check_parity : measure, and refuse past the tolerances.
    scans : files or folders to measure on; none for the MNI152 brain.
    tolerance : fields of `parity.Tolerance` to replace, for all files.
    engines : what to measure with; none for all installed.
    allow_constant_age : publish an age network that answers nearly the same for everybody, too, and say so on
        the model card.
    allow_moved_target : publish a harmonizer that changes the scans of its own target site, too, likewise.
    localize : where a file fails parity, bisect over its nodes and say which ones break it.
    key : signs the bundle; None leaves it unsigned.
    """

    name: str = ""
    note: str = ""
    precisions: tuple[str, ...] = ()
    plans: tuple[Path, ...] = ()
    build: EngineOptions | None = None
    progress: bool = False
    half_weights: bool = False
    check_parity: bool = True
    allow_constant_age: bool = False
    allow_moved_target: bool = False
    scans: tuple[Path, ...] = ()
    tolerance: Mapping[str, float] | None = None
    engines: tuple[str, ...] = ()
    overwrite: bool = False
    localize: bool = False
    key: SigningKey | None = None

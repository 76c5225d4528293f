"""A published weight file to a bundle: read, rebuilt, and from there on the way of every export."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from hz_export.assemble import publish, refuse_target
from hz_export.export_options import ExportOptions
from hz_export.imported.keras_file import read_keras
from hz_export.imported.published import Published
from hz_export.imported.state_dict import read_state_dict
from hz_export.imported.table import importable
from hz_export.imported.weight_file import WeightFile
from hz_export.to_onnx import Checkpoint
from hz_runtime.bundle.store import Bundle
from hz_runtime.errors import UsageError
from hz_runtime.io.atomic import sha256_bytes

UNSTATED = "NOASSERTION"
READERS: Mapping[str, Callable[[Path], WeightFile]] = {"keras": read_keras, "torch": read_state_dict}


def import_network(
    published: Published,
    paths: Sequence[Path],
    out: Path,
    options: ExportOptions,
    *,
    accept_licence: bool = False,
    say: Callable[[str], None] = lambda _: None,
) -> Bundle:
    """Publish a network of others as the bundle `out`.

    paths : its weight files, or the folder that holds them.  accept_licence : needed where the licence
    forbids commercial use.  say : told one line a step.
    Raises UsageError where files are missing, unsafe, or not this network's, or the licence was not accepted;
    else as `assemble.publish`.
    """
    refuse_target(out, options)
    say(f"{published.title}: {published.authors}; {licence(published)}")
    if published.non_commercial and not accept_licence:
        forbids = (
            "which forbids commercial use" if published.licence != UNSTATED else "so that nothing is allowed"
        )
        raise UsageError(
            f"{published.name} has {licence(published)}, {forbids} without more.",
            f"Read it at {published.source}; to go on under its terms:  hz-export import --accept-licence",
        )
    files = [READERS[published.form](path) for path in found(published, paths)]
    for file, same in zip(files, is_published(published, files), strict=True):
        if same is False:  # somebody may have trained it on, which is no fault
            say(
                f"warning: {file.name} is not the file that its authors published (sha256 "
                f"{file.sha256[:12]}...). If you did not train it yourself, download it again from "
                f"{published.source}."
            )
    made = checkpoint(published, files)
    for file in files:
        unused = [name for name in published.unused if name in file.tensors]
        but = f" but {', '.join(unused)}, which has no part in answers" if unused else ""
        say(f"{file.name}: {len(file.tensors)} tensors, every one in its place{but}; sha256 {file.sha256}")
    return publish([made], out, options, say)


def is_published(published: Published, files: Sequence[WeightFile]) -> list[bool | None]:
    """Of each file whether its sha256 is the one that its authors publish; None where they publish none."""
    if not published.sha256:
        return [None] * len(files)
    return [file.sha256 == digest for file, digest in zip(files, published.sha256, strict=True)]


def as_published(bundle: Bundle, role: str, paths: Sequence[Path]) -> nn.Module:
    """The network of an imported bundle in torch as its authors compute it, from prepared volumes on, out of
    their files: whole volumes, without what a bundle does to spare memory.

    paths : the weight files that the bundle was imported from, or their folder.
    Raises UsageError where the bundle was not imported, or from other files.
    """
    about = bundle.raw.get("published", {}).get(role)
    if about is None:
        raise UsageError(
            f"{bundle.path.name} holds no {role} network that others published.",
            "Of a network that hz trained give the checkpoint:  --checkpoint FILE",
        )
    published = importable(about["name"])
    files = [READERS[published.form](path) for path in found(published, paths)]
    for file, stored in zip(files, about["files"], strict=True):
        if file.sha256 != stored["sha256"]:
            raise UsageError(
                f"{bundle.path.name} was not imported from this {file.name} (sha256 {file.sha256[:12]}..., "
                f"of the bundle's {stored['sha256'][:12]}...).",
                "Give the files that it was imported from.",
            )
    join = published.plain or published.combine
    return join([published.build(file) for file in files]).eval()


def found(published: Published, paths: Sequence[Path]) -> list[Path]:
    """The weight files, in the order of `published.files`. Raises UsageError where there are not as many."""
    wanted = [name.rpartition("/")[2] for name in published.files]
    folder = len(paths) == 1 and paths[0].is_dir()
    given = [paths[0] / name for name in wanted] if folder else list(paths)
    absent = [path.name for path in given if not path.is_file()]
    if absent or len(given) != len(wanted):
        said = f"{', '.join(absent)[:160]} is not there" if absent else f"{len(given)} files were given"
        raise UsageError(
            f"{published.name} is made of {', '.join(wanted)}; {said}.",
            f"Its authors keep them at {published.source} ({licence(published)}); hz downloads nothing.",
        )
    return given


def checkpoint(published: Published, files: Sequence[WeightFile]) -> Checkpoint:
    """The rebuilt network as hz exports its own. Raises UsageError naming a tensor that does not fit."""
    network = published.combine([published.build(file) for file in files]).eval()
    joined = files[0].sha256 if len(files) == 1 else sha256_bytes("".join(f.sha256 for f in files).encode())
    meta: dict[str, Any] = {
        "kind": published.name,
        "network": {},
        "sha256": joined,
        "sources": [],
        "target": published.target,
        "licence": licence(published),
        "recipe": published.recipe.to_dict(),
        "slice_wise": published.slice_wise,
        "published": described(published, files),
    }
    if published.centres:
        meta["age_distribution"] = {"centres": list(published.centres)}
    if published.age_range:
        meta["cohort"] = {"training": {"age_range": list(published.age_range)}}
    name = ", ".join(file.name for file in files)
    return Checkpoint(name, published.role, network, meta, published.recipe)


def described(published: Published, files: Sequence[WeightFile]) -> dict[str, Any]:
    """What the manifest and the model card say of where a network comes from; plain JSON types."""
    return {
        "name": published.name,
        "title": published.title,
        "authors": published.authors,
        "paper": published.paper,
        "licence": published.licence,
        "non_commercial": published.non_commercial,
        "source": published.source,
        "files": [
            {"name": name, "sha256": file.sha256, "sha256_published": same}
            for name, file, same in zip(published.files, files, is_published(published, files), strict=True)
        ],
        "preparation": list(published.preparation),
        "remarks": list(published.remarks),
    }


def licence(published: Published) -> str:
    """In words, with what it forbids."""
    if published.licence == UNSTATED:
        return "weights without a stated licence"
    terms = ", no commercial use" if published.non_commercial else ""
    return f"weights under {published.licence}{terms}"

"""hz-orthanc over studies in an Orthanc, against hz-run --prepare over the same studies as archives.

    python benchmarks/bridge_throughput.py ARCHIVE... [--studies N] [--repeat N] [--threads N]
                                           [--require ENGINE]

ARCHIVE: a .zip or .tar.gz with the series of one T1-weighted head. They are repeated, under other UIDs, until
there are N studies (20). In turns, each command in a process of its own with its start-up, are timed

    bridge   hz-orthanc --once over an Orthanc that holds the studies, until the last result is stored there
    hz-run   hz-run --prepare over a folder of the studies as .zip files, report and all

The bridge fetches every image, writes a derived series, a report and a page for each study, and stores them;
hz-run writes volumes and its pages. Needs Orthanc (Debian's package) and an idle machine. Prints JSON. A
study without a result of each kind ends it with an error.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("runtime", "calibration", "train", "export", "cli")
sys.path[:0] = [*(str(ROOT / room) for room in ROOMS), str(ROOT / "tests")]

from pydicom import dcmread  # noqa: E402
from pydicom.errors import InvalidDicomError  # noqa: E402
from pydicom.uid import generate_uid  # noqa: E402

from hz_runtime.cpus import usable_cpus  # noqa: E402
from machine import describe_machine  # noqa: E402
from process_memory import waited_for  # noqa: E402
from real_orthanc import ORTHANC, RealOrthanc  # noqa: E402

RATIO_ALLOWED = 1.2
RENAMED = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "FrameOfReferenceUID", "PatientID")


def copied(archive: Path, number: int, out: Path) -> int:
    """Write the images of an archive as study `number` into a new folder; how many."""
    count = 0
    with tempfile.TemporaryDirectory() as work:
        shutil.unpack_archive(archive, work, filter="data")
        for path in sorted(p for p in Path(work).rglob("*") if p.is_file()):
            try:
                data = dcmread(path)
            except InvalidDicomError:
                continue
            for name in RENAMED:
                if name in data:
                    setattr(data, name, generate_uid(entropy_srcs=[str(data[name].value), str(number)]))
            data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID
            out.mkdir(parents=True, exist_ok=True)
            data.save_as(out / f"{count:05}.dcm")
            count += 1
    if not count:
        raise SystemExit(f"{archive.name} holds no DICOM")
    return count


def timed(arguments: list[str], log: Path, **environment: str) -> dict[str, float]:
    """A command of hz as a user would start it: wall seconds, and peak memory of its largest process."""
    paths = [*(str(ROOT / room) for room in ROOMS), *filter(None, [os.environ.get("PYTHONPATH")])]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), **environment}
    for variable in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        env.pop(variable, None)  # what hz sets is part of what is measured
    started = time.perf_counter()
    with log.open("w") as out:
        command = [sys.executable, *arguments]
        process = subprocess.Popen(command, env=env, stdout=out, stderr=subprocess.STDOUT)
        _, peak = waited_for(process)
    if process.returncode:
        said = log.read_text()[-1000:]
        raise SystemExit(f"{arguments[1]} ended with exit code {process.returncode}: {said}")
    return {"wall_s": time.perf_counter() - started, "peak_gb": peak / 1e9}


def over_orthanc(studies: Path, work: Path, how: list[str]) -> dict[str, float]:
    """The bridge over all studies of a folder, in an Orthanc that is filled first and thrown away after."""
    number = len(list(studies.iterdir()))
    server = RealOrthanc(work / "orthanc")
    try:
        client = server.client()
        for path in sorted(studies.rglob("*.dcm")):
            client.upload(path.read_bytes())
        while not all(client.get(f"/series/{one}")["IsStable"] for one in client.get("/series")):
            time.sleep(0.2)
        version = client.get("/system")["Version"]
        client.close()
        command = ["-m", "hz_cli.orthanc", "--once", "--since", "0", "--url", server.url, "--user", "hz"]
        command += ["--state", str(work / "state"), *how]
        done = timed(command, work / "bridge.log", HZ_ORTHANC_PASSWORD="s3cret")
        series, images = len(server.derived()), sum(server.derived().values())
    finally:
        server.stop()
    if series != 3 * number:  # images, report, page
        raise SystemExit(f"{series} series for {number} studies: {(work / 'bridge.log').read_text()[-1000:]}")
    return {**done, "stored_images": images, "orthanc": version}


def over_archives(archives: Path, work: Path, how: list[str]) -> dict[str, float]:
    out = work / "harmonized"
    done = timed(
        ["-m", "hz_cli.run", "--prepare", str(archives), "--out", str(out), "--plain", *how], work / "run.log"
    )
    found, wanted = len(list(out.rglob("*_desc-harmonized_T1w.nii.gz"))), len(list(archives.iterdir()))
    if found != wanted:
        raise SystemExit(f"{found} results of {wanted} archives: {(work / 'run.log').read_text()[-1000:]}")
    return {**done, "engine": json.loads((out / "run.json").read_text())["backend"]}


def measure(args: argparse.Namespace, place: Path) -> dict[str, Any]:
    machine = describe_machine()
    studies, archives = place / "studies", place / "archives"
    archives.mkdir(parents=True)
    images = 0
    for number in range(args.studies):
        folder = studies / f"study{number:03}"
        images += copied(args.archives[number % len(args.archives)], number, folder)
        shutil.make_archive(str(archives / folder.name), "zip", folder)
    how = ["--threads", str(args.threads), *(["--require", args.require] if args.require else [])]
    bridge, run = [], []
    for _ in range(args.repeat):
        with tempfile.TemporaryDirectory(dir=place) as work:
            run.append(over_archives(archives, Path(work), how))
            bridge.append(over_orthanc(studies, Path(work), how))
    ratio = statistics.median(b["wall_s"] / r["wall_s"] for b, r in zip(bridge, run, strict=True))
    return {
        "studies": args.studies,
        "images": images,
        "stored_images": bridge[-1]["stored_images"],
        "threads": args.threads,
        "repeat": args.repeat,
        "engine": {key: run[-1]["engine"][key] for key in ("name", "provider", "version", "precision")},
        "orthanc": bridge[-1]["orthanc"],
        "bridge_s": round(statistics.median(b["wall_s"] for b in bridge), 3),
        "hz_run_s": round(statistics.median(r["wall_s"] for r in run), 3),
        "bridge_over_hz_run": round(ratio, 3),
        "bridge_peak_gb": round(max(b["peak_gb"] for b in bridge), 3),
        "hz_run_peak_gb": round(max(r["peak_gb"] for r in run), 3),
        "met": {f"bridge within {RATIO_ALLOWED} of hz-run": ratio <= RATIO_ALLOWED},
        "machine": machine,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("archives", nargs="+", type=Path, metavar="ARCHIVE")
    parser.add_argument("--studies", type=int, default=20)
    parser.add_argument("--repeat", type=int, default=1)
    parser.add_argument("--threads", type=int, default=usable_cpus())
    parser.add_argument("--require", help="engine of both, e.g. onnxruntime-cpu: fails rather than falls")
    args = parser.parse_args()
    if ORTHANC is None:
        parser.error("needs Orthanc: the Debian package orthanc")
    with tempfile.TemporaryDirectory() as place:
        print(json.dumps(measure(args, Path(place)), indent=2))


if __name__ == "__main__":
    main()

"""hz-bids for tools that run BIDS Apps over whole studies: nipoppy's pipeline files and BABS's configuration.

`python -m hz_cli.pipelines` writes into containers/pipelines, from the command itself: for nipoppy a config,
the Boutiques descriptor, invocation, tracker and HPC settings; for BABS one YAML file. Both start an image
built from containers/hz.def, one participant a job, and ask for the same cores and memory.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from hz_cli import boutiques

NAME = "hz"
CORES, MEMORY_GB, TIME = 4, 6, "2:00:00"  # of one participant: a few raw heads with room for a slow node
_SUBJECT, _SESSION = "[[NIPOPPY_BIDS_PARTICIPANT_ID]]", "[[NIPOPPY_BIDS_SESSION_ID]]"
_SCHEMA = "1.0"  # of nipoppy's files


def config(version: str) -> dict[str, Any]:
    """nipoppy's config.json: one step, which works on all sessions of a participant at once."""
    return {
        "NAME": NAME,
        "VERSION": version,
        "DESCRIPTION": "Harmonizes T1-weighted scans and predicts age from them. Research use only.",
        "CONTAINER_INFO": {
            "FILE": "[[NIPOPPY_DPATH_CONTAINERS]]/[[PIPELINE_NAME]]_[[PIPELINE_VERSION]].sif",
        },
        "CONTAINER_CONFIG": {"ENV_VARS": {}, "ARGS": ["--cleanenv"]},
        "STEPS": [
            {
                "ANALYSIS_LEVEL": "participant",
                "DESCRIPTOR_FILE": "descriptor.json",
                "INVOCATION_FILE": "invocation.json",
                "TRACKER_CONFIG_FILE": "tracker.json",
                "HPC_CONFIG_FILE": "hpc.json",
            }
        ],
        "PIPELINE_TYPE": "processing",
        "SCHEMA_VERSION": _SCHEMA,
    }


def descriptor(version: str) -> dict[str, Any]:
    """The Boutiques descriptor of hz-bids, and the image that it is run in."""
    found = boutiques.descriptor("hz-bids", version)
    return {**found, "container-image": {"type": "singularity", "image": f"{NAME}:{version}"}}


def invocation(_: str) -> dict[str, Any]:
    """What nipoppy calls hz-bids with; the working folder stays in the results, where group looks for it."""
    return {
        "bids_dir": "[[NIPOPPY_DPATH_BIDS]]",
        "out": "[[NIPOPPY_DPATH_PIPELINE_OUTPUT]]",
        "level": "participant",
        "participant_label": ["[[NIPOPPY_PARTICIPANT_ID]]"],
        "n_cpus": CORES,
        "mem_mb": MEMORY_GB * 1000,
        "plain": True,
    }


def tracker(_: str) -> dict[str, Any]:
    """What a session's results are, for nipoppy's table of what is done.

    Its predictions alone: a bundle of an age network writes no volume.
    """
    return {
        "PATHS": [f"{_SUBJECT}/{_SESSION}/{_SUBJECT}_{_SESSION}_predictions.tsv"],
        "PARTICIPANT_SESSION_DIR": f"{_SUBJECT}/{_SESSION}",
        "SCHEMA_VERSION": _SCHEMA,
    }


def hpc(_: str) -> dict[str, Any]:
    """What nipoppy asks a scheduler for."""
    return {
        "ACCOUNT": "[[HPC_ACCOUNT_NAME]]",
        "TIME": TIME,
        "CORES": str(CORES),
        "MEMORY": f"{MEMORY_GB}G",
        "ARRAY_CONCURRENCY_LIMIT": "",
    }


def babs(version: str) -> str:
    """BABS's container configuration. What a site must fill in says SITE."""
    return f"""\
# BABS: `babs init --container_config babs.yaml --container_name {NAME}-{version.replace(".", "-")} ...`
input_datasets:
  BIDS:
    required_files:
      - "anat/*_T1w.nii*"
    is_zipped: false
    origin_url: "SITE/path/to/BIDS"
    path_in_babs: inputs/data/BIDS
bids_app_args:
  $SUBJECT_SELECTION_FLAG: "--participant-label"
  -w: "$BABS_TMPDIR"
  --n-cpus: "{CORES}"
  --mem-mb: "{MEMORY_GB * 1000}"
  --stop-on-first-crash: ""
  --plain: ""
singularity_args:
  - --containall
  - --writable-tmpfs
all_results_in_one_zip: true
zip_foldernames:
  {NAME}: "{version.replace(".", "-")}"
cluster_resources:
  interpreting_shell: "/bin/bash"
  hard_runtime_limit: "{TIME}"
  customized_text: |
    #SBATCH --nodes=1
    #SBATCH --ntasks=1
    #SBATCH --cpus-per-task={CORES}
    #SBATCH --mem={MEMORY_GB}G
script_preamble: |
  source SITE/path/to/venv/bin/activate
job_compute_space: "SITE/path/to/scratch"
"""


def _json(make: Callable[[str], Any]) -> Callable[[str], str]:
    return lambda version: boutiques.encoded(make(version))


FILES: dict[str, Callable[[str], str]] = {
    "nipoppy/config.json": _json(config),
    "nipoppy/descriptor.json": _json(descriptor),
    "nipoppy/invocation.json": _json(invocation),
    "nipoppy/tracker.json": _json(tracker),
    "nipoppy/hpc.json": _json(hpc),
    "babs.yaml": babs,
}


@click.command()
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("containers/pipelines"),
    show_default=True,
    help="Folder for the files.",
)
def main(out: Path) -> None:
    """Write the pipeline files of nipoppy and the configuration of BABS."""
    import hz_runtime

    for name, make in FILES.items():
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_text(make(hz_runtime.__version__), encoding="utf-8")
        click.echo(name)


if __name__ == "__main__":
    main()

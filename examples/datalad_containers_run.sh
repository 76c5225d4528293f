#!/usr/bin/env bash
# A participant through hz's image in a DataLad data set, with the whole command kept in its history.
#
#     examples/datalad_containers_run.sh STUDY IMAGE.sif 01
#
# STUDY: a raw BIDS data set under DataLad. IMAGE.sif: built from containers/hz.def. Needs datalad,
# datalad-container and apptainer. `datalad rerun` does the same again and shows whether any byte differs.
set -euo pipefail

study=$1 image=$2 label=${3#sub-}
cd "$study"

if ! datalad containers-list 2>/dev/null | grep -qw hz; then
    datalad containers-add hz --url "$image" \
        --call-fmt 'apptainer run --cleanenv --bind {{pwd}} --pwd {{pwd}} {img} {cmd}'
fi
[ -d derivatives/hz ] || datalad create -d . derivatives/hz

# Only this participant's scans are fetched; the results, and hz's working folder with them, are saved.
datalad containers-run -n hz \
    -m "hz: sub-$label" \
    --input dataset_description.json \
    --input participants.tsv \
    --input "sub-$label" \
    --output derivatives/hz \
    ". derivatives/hz participant --participant-label $label --plain"

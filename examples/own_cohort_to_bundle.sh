#!/usr/bin/env bash
# From a cohort to harmonized scans: train a harmonizer and an age network, export both, run the bundle.
#   examples/own_cohort_to_bundle.sh WORK                                        a simulated cohort, minutes
#   examples/own_cohort_to_bundle.sh WORK COHORT/participants.tsv SOURCE TARGET  your own
# participants.tsv: tab-separated, with the columns file (relative to the table), site and age; scans are
# skull-stripped and lie in MNI152 space, as hz-prepare makes them. Needs: pip install "hz-mri[train,export,cpu]"
#   PRESET=small|paper   hours on a CPU, days on a GPU; the default, quick, runs every step and learns nothing
# The same command again goes on where it was stopped.
set -euo pipefail
work=${1:?the folder to work in}
cohort=${2:-$work/cohort/participants.tsv} source=${3:-steep} target=${4:-reference}
preset=${PRESET:-quick}

if [ $# -lt 2 ] && [ ! -f "$cohort" ]; then
  hz-train simulate --out "$work/cohort" --sites reference,steep --subjects-per-site 12 --size 32
fi

# The slice-wise system. The volume-wise one takes the same steps: hz-train cyclegan, hz-train age.
hz-train canonical --cohort "$cohort" --source "$source" --target "$target" --preset "$preset" \
  --out "$work/harmonizer"
harmonizer=$work/harmonizer/harmonizer.safetensors
hz-train slice-age --cohort "$cohort" --sites "$target" --harmonizer "$harmonizer" --preset "$preset" \
  --out "$work/age"

# Checked against torch on scans of the cohort; read WORK/own.hz/MODEL_CARD.md before its ages.
mapfile -t scans < <(awk -F'\t' -v folder="$(dirname "$cohort")" -v site="$source" '
  NR == 1 { for (i = 1; i <= NF; i++) at[$i] = i; next }
  $at["site"] == site { print folder "/" $at["file"] }' "$cohort")
hz-export "$harmonizer" "$work/age/age.safetensors" --out "$work/own.hz" --name own --overwrite \
  "${scans[@]/#/--scans=}"

hz-run "${scans[@]}" --model "$work/own.hz" --participants "$cohort" --out "$work/results"

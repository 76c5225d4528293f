#!/usr/bin/env bash
# How the reference bundle was made. Needs the cohort (participants.tsv and its scans) and hours of CPU.
#   benchmarks/train_reference.sh COHORT/participants.tsv WORK_FOLDER [SCANS_FOR_PARITY...]
# Only the permissively licensed sites are named: nothing trained on oasis1 (CC BY-NC) ships.
set -euo pipefail
cohort=$1 work=$2
shift 2
hz-train cyclegan --cohort "$cohort" --source ds000011,ixi_hh --target ds002748 --preset reference \
  --out "$work/harmonizer" --licence "ds002748 CC0, ds000011 PDDL 1.0, IXI CC BY-SA 3.0"
hz-train age --cohort "$cohort" --sites ds002748 --preset reference \
  --harmonizer "$work/harmonizer/harmonizer.safetensors" --out "$work/age" --licence "ds002748 CC0"
scans=()
for scan in "$@"; do scans+=(--scans "$scan"); done
# The shipped plan was made on the scans of the three permissive sites alone.
folder=$(dirname "$cohort")
mapfile -t calibration < <(awk -F'\t' 'NR > 1 && $3 != "oasis1" {print $1}' "$cohort")
hz-calibrate "$work/harmonizer/harmonizer.safetensors" "${calibration[@]/#/$folder/}" --participants "$cohort" \
  --no-half --out "$work/plan.json" --overwrite
hz-export --fp16 --int8 --plan "$work/plan.json" --half-weights "$work/harmonizer/harmonizer.safetensors" "$work/age/age.safetensors" \
  --out runtime/hz_runtime/models/reference.hz --name reference --overwrite "${scans[@]}" --note "The harmonizer's held-out \
subjects were looked at while its training was developed, through scanners simulated as in training: \
development scores, no independent test. The age network was cross-validated by subject on scans that had passed \
through this harmonizer, which had itself been trained on most of them (without their ages). One of all three sites was set aside \
after a look at its errors on oasis1."

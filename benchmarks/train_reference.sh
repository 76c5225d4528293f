#!/usr/bin/env bash
# How the reference bundle was made: two hours of two CPU cores; every step goes on where it was stopped.
#   benchmarks/train_reference.sh SCANS WORK_FOLDER
# SCANS holds the folders ixi_hh and real_cohort_2mm (`reference_cohort.py` says what they are). Only
# permissively licensed sites train, and no weight sees oasis1 or any other site.
set -euo pipefail
scans=$1 work=$2
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$work"
python "$here/reference_cohort.py" "$scans" "$work"
cohort=$work/participants.tsv

# The harmonizer goes on from that of the bundle before: a pool of ds000011 and six of ixi_hh to ds002748.
before=d675434
git -C "$here/.." archive $before runtime/hz_runtime/models/reference.hz | tar -x -C "$work"
seen=("$scans"/real_cohort_2mm/{ds002748,ds000011,IXI}*.nii.gz)
[ -f "$work/before.safetensors" ] ||
  python "$here/checkpoint_of_bundle.py" "$work/runtime/hz_runtime/models/reference.hz" "$work/before.safetensors" "${seen[@]}"
hz-train cyclegan --cohort "$cohort" --source ds002748,ds000011 --target ixi_hh --preset reference \
  --intensity median --start-from "$work/before.safetensors" --out "$work/harmonizer" --licence "IXI CC BY-SA 3.0, ds002748 CC0, ds000011 PDDL 1.0"
hz-train age --cohort "$cohort" --sites ixi_hh --preset reference \
  --harmonizer "$work/harmonizer/harmonizer.safetensors" --out "$work/age" --licence "IXI CC BY-SA 3.0"

# The plan of INT8 and the parity of the files are measured on different people of the cohort.
mapfile -t files < <(awk -F'\t' 'NR > 1 {print $1}' "$cohort")
calibration=() parity=()
for i in "${!files[@]}"; do
  case $((i % 12)) in
    0) calibration+=("$work/${files[i]}") ;;
    6) parity+=(--scans "$work/${files[i]}") ;;
  esac
done
hz-calibrate "$work/harmonizer/harmonizer.safetensors" "${calibration[@]}" --participants "$cohort" \
  --no-half --out "$work/plan.json" --overwrite
hz-export --fp16 --int8 --plan "$work/plan.json" \
  "$work/harmonizer/harmonizer.safetensors" "$work/age/age.safetensors" \
  --out "$here/../runtime/hz_runtime/models/reference.hz" --name reference --overwrite "${parity[@]}" --note \
  "The age network was cross-validated by subject on scans that had passed through this harmonizer, which had \
itself been trained on most of them (without their ages)."

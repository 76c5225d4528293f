#!/usr/bin/env bash
# How the reference bundle was made, in hours of two CPU cores; every step goes on where it was stopped.
# judge_reference.sh says what it is worth.
#   benchmarks/train_reference.sh SCANS WORK_FOLDER
# SCANS holds the folders ixi_hh and real_cohort_2mm (`reference_cohort.py` says what they are). Only
# permissively licensed sites train, and no weight sees oasis1 or any other site.
set -euo pipefail
scans=$1 work=$2
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$work"
python "$here/reference_cohort.py" "$scans" "$work"
cohort=$work/participants.tsv

# The harmonizer goes on from that of the bundle before it, which mapped ds000011 and six of ixi_hh to ds002748.
before=$work/before.safetensors
if [ ! -f "$before" ]; then
  bundle=models/reference.hz
  git -C "$here/.." archive d675434 $bundle | tar -x -C "$work"
  python "$here/checkpoint_of_bundle.py" "$work/$bundle" "$before" \
    "$scans"/real_cohort_2mm/{ds002748,ds000011,IXI}*.nii.gz
fi
harmonizer() { # from which checkpoint, to which folder, further options
  hz-train cyclegan --cohort "$cohort" --source ds002748,ds000011 --target ixi_hh --preset reference \
    --precision auto --intensity median --licence "IXI CC BY-SA 3.0, ds002748 CC0, ds000011 PDDL 1.0" \
    --anchor white --unchanged 0.25 --averaging 0.99 --start-from "$1" --out "$2" "${@:3}"
}
harmonizer "$before" "$work/harmonizer" --coarse 4 --warmup 2 --warmup-lr 2e-4 --epochs 6
# Brains that were stripped otherwise have another median, and came out brighter than the target's.
harmonizer "$work/harmonizer/harmonizer.safetensors" "$work/anchored" \
  --gain 0.25 --coarse 1 --warmup 1 --warmup-lr 1e-4 --epochs 2
# Of all three sites: an age network of the reference site alone takes for age what harmonization leaves of the
# others, and answers decades too old there (age_at_sites.py).
hz-train age --cohort "$cohort" --sites ixi_hh,ds002748,ds000011 --preset ensemble \
  --harmonizer "$work/anchored/harmonizer.safetensors" --out "$work/age" \
  --licence "IXI CC BY-SA 3.0, ds002748 CC0, ds000011 PDDL 1.0"

# The plan of INT8 and the parity of the files are measured on different people of the cohort.
mapfile -t files < <(awk -F'\t' 'NR > 1 {print $1}' "$cohort")
calibration=() parity=()
for i in "${!files[@]}"; do
  case $((i % 18)) in
    0) calibration+=("$work/${files[i]}") ;;
    9) [ ${#parity[@]} -lt 12 ] && parity+=(--scans "$work/${files[i]}") ;;
  esac
done
# The plan is made with the age network behind the harmonizer: ages move further than intensities.
hz-export "$work/anchored/harmonizer.safetensors" "$work/age/age.safetensors" --out "$work/plain.hz" \
  --no-parity --overwrite
hz-calibrate "$work/plain.hz" --role harmonizer "${calibration[@]}" --participants "$cohort" \
  --no-half --out "$work/plan.json" --overwrite
hz-export --fp16 --int8 --plan "$work/plan.json" --half-weights \
  "$work/anchored/harmonizer.safetensors" "$work/age/age.safetensors" \
  --out "$here/../runtime/hz_runtime/models/reference.hz" --name reference --overwrite "${parity[@]}" --note \
  "The harmonizer was trained by restoration alone, from the weights of an earlier one; the adversarial losses of the \
paper took no part. The age network was cross-validated by subject on scans that had passed through this harmonizer, \
which had itself been trained on most of them (without their ages)."

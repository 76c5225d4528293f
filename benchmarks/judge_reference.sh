#!/usr/bin/env bash
# What a bundle of train_reference.sh is worth on real people, in about two hours of two CPU cores.
#   benchmarks/judge_reference.sh SCANS WORK_FOLDER
# SCANS as for reference_cohort.py; WORK_FOLDER as train_reference.sh leaves it. Results: benchmarks/results/.
set -euo pipefail
scans=$1 work=$2
here=$(cd "$(dirname "$0")" && pwd)
results=$here/results
bundle=$here/../runtime/hz_runtime/models/reference.hz
python "$here/reference_cohort.py" "$scans" "$work" judged
at() { # the rows of judged.tsv of these sites
  awk -F'\t' -v sites=" $* " 'NR == 1 || index(sites, " " $4 " ")' "$work/judged.tsv" >"$work/$(IFS=-; echo "$*").tsv"
}
keep() { # a study's numbers, without its page and pictures
  mkdir -p "$results/$2"
  cp "$work/$1"/*.json "$work/$1"/*.tsv "$results/$2/"
}

python "$here/scanner_spread.py" "$work/judged.tsv" "$work/anchored/harmonizer.safetensors" \
  >"$results/scanner_spread-real.json"
python "$here/age_skill.py" "$work/age/age.json" "$work/participants.tsv" --site ixi_hh \
  --harmonizer "$work/anchored/harmonizer.safetensors" >"$results/age_skill-ixi_hh.json"
python "$here/age_interval.py" real "$work/age/age.json" "$work/judged.tsv" --bundle "$bundle" \
  >"$results/age_interval-real_sites.json"
python "$here/age_at_sites.py" "$work/judged.tsv" --bundle "$bundle" --sites ds002748,ds000011,oasis1 \
  >"$results/age_at_sites-real.json"
for study in appearance audit; do
  hz-evaluate $study --cohort "$work/judged.tsv" --reference ixi_hh --harmonizer "$bundle" --written-only \
    --held-out 0.3 --out "$work/$study-written"
  keep "$study-written" "$study-written-real"
done
at ixi_hh # the one site whose scans all have label maps
hz-evaluate audit --cohort "$work/ixi_hh.tsv" --reference ixi_hh --harmonizer "$bundle" --written-only \
  --subjects 40 --held-out 0.3 --out "$work/audit-label_maps"
keep audit-label_maps audit-label_maps-real
at ixi_hh ds002748 oasis1
hz-evaluate transfer --cohort "$work/ixi_hh-ds002748-oasis1.tsv" --reference ixi_hh --harmonizer "$bundle" \
  --predictor ensemble --out "$work/transfer"
keep transfer transfer-real
at ixi_hh ds002748
hz-evaluate pooled --cohort "$work/ixi_hh-ds002748.tsv" --reference ixi_hh --preset reference --grid 32 --width 16 \
  --batch 2 --epochs 16 --predictor ensemble --seeds 0,1,2 --precision float32 --out "$work/pooled"
keep pooled pooled-real-32
python "$here/travelling_head.py" "$scans/real_cohort_2mm/participants.tsv" --site oasis1 --bundle "$bundle" \
  >"$results/travelling_head-oasis1.json"

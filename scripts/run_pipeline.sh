#!/usr/bin/env bash
# Run every stage of an experiment, in order; finished stages say so and are skipped.
#
#   scripts/run_pipeline.sh configs/demo
#   scripts/run_pipeline.sh configs/demo --run runs/demo-1 --seed 1     (the same data, other seeds of everything learnt)
#   scripts/run_pipeline.sh configs/scientific --input data/scientific --extras
#
# --extras adds SASRec and GRU4Rec, alone and (SASRec) taught by the teacher, and dwr with a memory. --input goes to
# prepare_data alone, --index to build_semantic_ids; --seed to every stage but prepare_data; other options to every stage.
set -euo pipefail

if [ $# -lt 1 ] || [ ! -d "$1" ]; then
  echo "usage: scripts/run_pipeline.sh CONFIG_DIR [--input DIR] [--index FILE] [--run DIR] [--seed N] [--extras] [--overwrite]" >&2
  exit 2
fi
configs=$1
shift
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
common=() data=() ids=() seed=() extras=
while [ $# -gt 0 ]; do
  case "$1" in
    --input) data+=(--input "$2"); shift 2 ;;
    --index) ids+=(--index "$2"); shift 2 ;;
    --seed) seed=(--seed "$2"); shift 2 ;;
    --overwrite) common+=(--overwrite); shift ;;
    --extras) extras=yes; shift ;;
    *) common+=("$1" "$2"); shift 2 ;;
  esac
done

# one process on this machine unless ACCELERATE_CONFIG names a launch configuration
launch=(accelerate launch --quiet --config_file "${ACCELERATE_CONFIG:-$root/configs/accelerate/cpu.yaml}")

stage() { # CONFIG_NAME SCRIPT [ARG ...]
  local config=$configs/$1.yaml script=$root/$2
  shift 2
  python "$script" --config "$config" "$@" ${common[@]+"${common[@]}"}
}

launched() { # the same under accelerate; finished work is found out without starting it
  local said status=0
  said=$(stage "$@" --check 2>&1 >/dev/null) || status=$?
  if [ "$status" -ne 1 ]; then # 0: finished; 2: a mistake, explained
    echo "$said" >&2
    return "$status"
  fi
  local config=$configs/$1.yaml script=$root/$2
  shift 2
  "${launch[@]}" "$script" --config "$config" "$@" ${common[@]+"${common[@]}"}
}

stage data scripts/prepare_data.py ${data[@]+"${data[@]}"}
if [ -f "$configs/embeddings.yaml" ]; then
  stage embeddings scripts/embed_items.py ${seed[@]+"${seed[@]}"}
fi
stage semantic_ids scripts/build_semantic_ids.py ${ids[@]+"${ids[@]}"} ${seed[@]+"${seed[@]}"}
launched teacher teacher/finetune.py ${seed[@]+"${seed[@]}"}
stage export distill/export_soft_labels.py
for variant in tiger smooth distill dtr dwr; do
  launched student student/train.py --variant "$variant" ${seed[@]+"${seed[@]}"}
done
if [ -n "$extras" ]; then
  launched baseline student/baseline.py --network sasrec ${seed[@]+"${seed[@]}"}
  launched baseline student/baseline.py --network gru4rec ${seed[@]+"${seed[@]}"}
  launched baseline student/baseline.py --network sasrec --loss list ${seed[@]+"${seed[@]}"}
  stage memory scripts/add_memory.py
fi
stage evaluate scripts/evaluate.py ${seed[@]+"${seed[@]}"}
stage report scripts/report.py

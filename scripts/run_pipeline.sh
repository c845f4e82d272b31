#!/usr/bin/env bash
# Run every job of an experiment, in order; finished ones are skipped.
#
#   scripts/run_pipeline.sh configs/demo
#   scripts/run_pipeline.sh configs/demo --run runs/demo-1 --seed 1     (the same data, other seeds of all training)
#   scripts/run_pipeline.sh configs/scientific --input data/scientific --extras
#
# --extras adds SASRec, GRU4Rec and FMLP-Rec, SASRec taught by the teacher, and dwr with a memory. --input goes to
# prepare_data alone, --index to build_semantic_ids; --seed to every job but prepare_data; other options to every job.
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
# accelerate-launch is `accelerate launch` without the imports of its other commands, five seconds a start
launch=(accelerate-launch --quiet)
if [ -n "${ACCELERATE_CONFIG:-}" ]; then
  launch+=(--config_file "$ACCELERATE_CONFIG")
else # Accelerate would choose the same number of threads, and warn that it chose one
  threads=${OMP_NUM_THREADS:-$(python -c 'import psutil; print(psutil.cpu_count(logical=False) or 1)')}
  launch+=(--config_file "$root/configs/accelerate/cpu.yaml" --num_cpu_threads_per_process "$threads")
fi

job() { # CONFIG_NAME SCRIPT [ARG ...]
  local config=$configs/$1.yaml script=$root/$2
  shift 2
  python "$script" --config "$config" "$@" ${common[@]+"${common[@]}"}
}

launched_job() { # the same under accelerate, which is not started where the work is finished
  local message status=0
  message=$(job "$@" --check 2>&1 >/dev/null) || status=$?
  if [ "$status" -ne 1 ]; then # 0: finished; 2: a mistake, explained
    echo "$message" >&2
    return "$status"
  fi
  local config=$configs/$1.yaml script=$root/$2
  shift 2
  "${launch[@]}" "$script" --config "$config" "$@" ${common[@]+"${common[@]}"}
}

job data scripts/prepare_data.py ${data[@]+"${data[@]}"}
if [ -f "$configs/embeddings.yaml" ]; then
  job embeddings scripts/embed_items.py ${seed[@]+"${seed[@]}"}
fi
job semantic_ids scripts/build_semantic_ids.py ${ids[@]+"${ids[@]}"} ${seed[@]+"${seed[@]}"}
launched_job teacher teacher/finetune.py ${seed[@]+"${seed[@]}"}
job export distill/export_soft_labels.py
for variant in tiger smooth distill dtr dwr; do
  launched_job student student/train.py --variant "$variant" ${seed[@]+"${seed[@]}"}
done
if [ -n "$extras" ]; then
  for network in sasrec gru4rec fmlp; do
    launched_job baseline student/baseline.py --network "$network" ${seed[@]+"${seed[@]}"}
  done
  launched_job baseline student/baseline.py --network sasrec --loss list ${seed[@]+"${seed[@]}"}
  job memory scripts/add_memory.py
fi
job evaluate scripts/evaluate.py ${seed[@]+"${seed[@]}"}
job report scripts/report.py

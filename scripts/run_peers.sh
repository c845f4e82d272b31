#!/usr/bin/env bash
# Train RecBole's sequential models on a data set and bring back their ranked lists for the evaluation.
#
#   scripts/run_peers.sh runs/scientific/dataset peers/scientific
#   scripts/run_peers.sh runs/scientific/dataset peers/scientific --models SASRec,GRU4Rec --lr 0.001 --dropout 0.5
#   python scripts/evaluate.py --config configs/scientific/evaluate.yaml --lists peers/scientific/recbole-sasrec.parquet
#
# Makes RecBole's environment once (PEERS_ENV, default peers/venv; PYTHON, default python3.11), exports the data set and
# trains; models whose lists are finished are skipped. Other options go to recbole_peers.py, whose --help lists them.
set -euo pipefail

if [ $# -lt 2 ] || [ ! -f "$1/manifest.json" ]; then
  echo "usage: scripts/run_peers.sh DATASET OUTPUT [--models A,B] [--option VALUE ...]; DATASET: an artifact of prepare_data.py" >&2
  exit 2
fi
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
dataset=$(cd "$1" && pwd)
mkdir -p "$2"
output=$(cd "$2" && pwd)
shift 2
environment=${PEERS_ENV:-$root/peers/venv}

fingerprint=$(python - "$dataset" <<'END'
import json, sys, pyarrow.parquet
if "train_end" in pyarrow.parquet.read_schema(f"{sys.argv[1]}/sequences.parquet").names:
    print(f"error: {sys.argv[1]} is split by time; RecBole would split it by leave-one-out.", file=sys.stderr)
    sys.exit(2)
print(json.load(open(f"{sys.argv[1]}/manifest.json"))["fingerprint"][:12])
END
)
export_folder=$output/export-$fingerprint
if [ ! -d "$export_folder" ]; then
  python "$root/scripts/export_dataset.py" --dataset "$dataset" --format recbole --output "$export_folder"
fi
if [ ! -f "$environment/installed" ]; then
  "${PYTHON:-python3.11}" -m venv --clear "$environment"
  "$environment/bin/pip" install -r "$root/requirements/recbole.txt"
  touch "$environment/installed"
fi
cd "$output" # where RecBole leaves its curves
PYTHONPATH=$root exec "$environment/bin/python" -W ignore "$root/scripts/recbole_peers.py" --data "$export_folder" --output . "$@"

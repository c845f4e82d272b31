#!/bin/bash
# Labels by Ray on SLURM: one Ray node a machine, and the export on the first of them.
#     sbatch configs/ray/slurm.sh --config configs/llama-7b/export.yaml --run /shared/runs/llama-7b
# The code, its environment and the run's folder lie on a disk that all machines mount. A job that ends too early is
# submitted again as it is: finished shards are kept.
#SBATCH --job-name=labels
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=32
#SBATCH --time=24:00:00
#SBATCH --no-kill
set -euo pipefail
cd "${SLURM_SUBMIT_DIR:?submit this file by sbatch}"
source .venv/bin/activate
export PYTHONPATH=$PWD RAY_USAGE_STATS_ENABLED=0

head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
address=$(getent ahostsv4 "$head" | awk 'NR == 1 {print $1}'):6379

# --no-kill, --kill-on-bad-exit=0: a machine that dies ends its own Ray node alone
srun --no-kill --kill-on-bad-exit=0 \
    ray symmetric-run --address "$address" --min-nodes "$SLURM_JOB_NUM_NODES" --num-cpus "$SLURM_CPUS_PER_TASK" -- \
    python distill/export_soft_labels.py --launcher ray --ray_address "$address" "$@"

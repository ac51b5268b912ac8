#!/usr/bin/env bash
# Train on several GPUs: tools/dist_train.sh CONFIG GPUS [ARGUMENTS OF tools/train.py]
#
# On several nodes: run the same command on each node, with NNODES, NODE_RANK (0 to NNODES-1) and MASTER_ADDR (node 0)
# set. PORT (default 29500) must be free on node 0. Jobs that share a machine need different ports.
#
# Slurm does not need this script, because it starts one process per GPU itself:
#   srun -p PARTITION --gres=gpu:8 --ntasks=8 --ntasks-per-node=8 python tools/train.py CONFIG --launcher slurm
set -euo pipefail

if [ $# -lt 2 ]; then
    sed -n '2,8s/^# \{0,1\}//p' "$0" >&2
    exit 2
fi
config=$1 gpus=$2
shift 2

exec "${PYTHON:-python}" -m torch.distributed.run \
    --nnodes="${NNODES:-1}" --node_rank="${NODE_RANK:-0}" --nproc_per_node="$gpus" \
    --master_addr="${MASTER_ADDR:-127.0.0.1}" --master_port="${PORT:-29500}" \
    "$(dirname "$0")/train.py" "$config" --launcher pytorch "$@"

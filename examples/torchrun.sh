#!/usr/bin/env bash
# A training started by torchrun, which is only a launcher here: --no-python, because the workers are binaries.
# Run it on every node, with the same MASTER_ADDR; NODE_RANK counts the nodes from 0. After a failure, torchrun starts all
# workers again, MAX_RESTARTS times, and they continue from the newest checkpoint.
#
# TANDEM_RENDEZVOUS_SECRET, the same on every node (`openssl rand -hex 32`), keeps strangers out (docs/security.md).
#
#   NNODES=2 NODE_RANK=0 MASTER_ADDR=node0 examples/torchrun.sh     # on the first node
#   NNODES=2 NODE_RANK=1 MASTER_ADDR=node0 examples/torchrun.sh     # on the second node
set -euo pipefail

exec torchrun --no-python --max-restarts "${MAX_RESTARTS:-0}" \
    --nnodes "${NNODES:-1}" --nproc-per-node "${GPUS_PER_NODE:-4}" --node-rank "${NODE_RANK:-0}" \
    --master-addr "${MASTER_ADDR:-127.0.0.1}" --master-port "${MASTER_PORT:-29500}" \
    train_fsdp \
    --model_name Qwen/Qwen2-7B --dataset_name wikitext \
    --tp_size "${GPUS_PER_NODE:-4}" --dp_size "${NNODES:-1}" \
    --num_workers "$((${NNODES:-1} * ${GPUS_PER_NODE:-4}))" \
    --storage_path "${STORAGE_PATH:-$HOME/tandem-runs}" --experiment_name qwen2-7b

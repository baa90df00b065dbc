#!/usr/bin/env bash
# A training started by Open MPI's mpirun, which is only a launcher here: nothing links MPI.
#
#   HOSTS=node0:4,node1:4 examples/mpirun.sh
set -euo pipefail

hosts="${HOSTS:-localhost:4}"

# What the ranks prove to each other that they know (docs/security.md).
TANDEM_RENDEZVOUS_SECRET="$(openssl rand -hex 32)"
export TANDEM_RENDEZVOUS_SECRET

# Ranks are filled host by host (mpirun's default), so a row of tp_size 4 stays on its host. Rank 0 is on the first one.
mpirun --host "$hosts" -np "${NUM_WORKERS:-4}" -x MASTER_ADDR="${hosts%%:*}" -x TANDEM_RENDEZVOUS_SECRET \
    train_fsdp \
    --model_name Qwen/Qwen2-7B --dataset_name wikitext \
    --tp_size 4 --dp_size "$((${NUM_WORKERS:-4} / 4))" --num_workers "${NUM_WORKERS:-4}" \
    --storage_path "${STORAGE_PATH:-$HOME/tandem-runs}" --experiment_name qwen2-7b

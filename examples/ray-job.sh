#!/usr/bin/env bash
# Submits a training to a Ray cluster that is there already, and follows its log. Run it where Ray's dashboard can be
# reached; every node of the cluster has the package (`pip install 'tandem[ray]'`) and sees the storage path.
#
#   RAY_ADDRESS=http://head:8265 examples/ray-job.sh
#
# `ray job stop` sends SIGTERM and, 3 s later, SIGKILL. Give the workers time to save: RAY_JOB_STOP_WAIT_TIME_S=120.
set -euo pipefail

ray job submit --address "${RAY_ADDRESS:?set it to the address of the dashboard, such as http://head:8265}" \
    --runtime-env-json '{"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": "120"}}' \
    -- train_fsdp --cluster ray --ray_address auto --use_gpu \
    --model_name Qwen/Qwen2-7B --dataset_name wikitext \
    --tp_size 4 --dp_size 2 --num_workers 8 \
    --max_failures 3 --num_to_keep 2 \
    --storage_path /mnt/cluster_storage --experiment_name qwen2-7b

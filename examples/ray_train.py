"""A training from Python, on the Ray cluster that this script runs on: `python examples/ray_train.py`."""

import ray.train

from tandem_ray import TandemTrainer

result = TandemTrainer(
    strategy="fsdp",
    # The flags of train_fsdp, by name.
    train_config={
        "model_name": "Qwen/Qwen2-7B",
        "dataset_name": "wikitext",
        "tp_size": 4,
        "dp_size": 2,
        "num_epochs": 1,
    },
    scaling_config=ray.train.ScalingConfig(num_workers=8, use_gpu=True),
    run_config=ray.train.RunConfig(
        name="qwen2-7b",
        storage_path="/mnt/cluster_storage",
        failure_config=ray.train.FailureConfig(max_failures=3),
        checkpoint_config=ray.train.CheckpointConfig(
            num_to_keep=2, checkpoint_score_attribute="loss", checkpoint_score_order="min"
        ),
    ),
).fit()
print(result.metrics, result.checkpoint)

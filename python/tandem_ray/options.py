"""What Ray is told of a run: the sections `run` and `ray` of a request, as `request.schema.json` describes them."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Final


@dataclass(frozen=True)
class RunOptions:
    """What Ray's RunConfig decides. Each field says how Ray spells it for those who write Python."""

    storage_path: str = field(metadata={"ray": "RunConfig(storage_path=...)"})
    # One of these two.
    name: str | None = field(default=None, metadata={"ray": "RunConfig(name=...)", "flag": "experiment_name"})
    resume_from: str | None = None
    max_failures: int = field(default=0, metadata={"ray": "RunConfig(failure_config=FailureConfig(max_failures=...))"})
    num_to_keep: int | None = field(
        default=None, metadata={"ray": "RunConfig(checkpoint_config=CheckpointConfig(num_to_keep=...))"}
    )
    checkpoint_score_attribute: str | None = field(
        default=None, metadata={"ray": "RunConfig(checkpoint_config=CheckpointConfig(checkpoint_score_attribute=...))"}
    )
    checkpoint_score_order: str = field(
        default="max", metadata={"ray": "RunConfig(checkpoint_config=CheckpointConfig(checkpoint_score_order=...))"}
    )


@dataclass(frozen=True)
class RayOptions:
    """The cluster and what each worker gets of it."""

    # As of ray.init: None finds or starts a Ray on this machine, "auto" only finds one; or host:port.
    address: str | None = None
    use_gpu: bool = False
    resources_per_worker: dict[str, float] | None = None
    placement_strategy: str = "PACK"
    accelerator_type: str | None = None
    label_selector: dict[str, str] | None = None
    # How long one failed attempt to get resources may take, and how often it is tried.
    resource_timeout_s: float = 600.0
    stop_grace_s: float = 120.0
    hang_timeout_s: float = 600.0


# The flags that Ray's own configuration decides, with where. Two places for one value would be one too many.
DECIDED_BY_RAY: Final = {
    option.metadata.get("flag", option.name): option.metadata["ray"]
    for option in fields(RunOptions)
    if "ray" in option.metadata
}

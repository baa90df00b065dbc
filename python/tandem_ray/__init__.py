"""Training with Tandem on a Ray cluster: Ray Train places and supervises the workers, Tandem's binaries train."""

from tandem_ray.errors import ConfigError, InsufficientResourcesError, WorkerFailedError
from tandem_ray.trainer import TandemTrainer

__all__ = ["ConfigError", "InsufficientResourcesError", "TandemTrainer", "WorkerFailedError"]

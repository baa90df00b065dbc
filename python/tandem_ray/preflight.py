"""The program's own check of its flags, on the driver, before anything is scheduled."""

from __future__ import annotations

import logging
import subprocess
from collections.abc import Sequence
from typing import Final

from tandem_ray import exit_codes
from tandem_ray.errors import ConfigError
from tandem_ray.worker_spec import find_program

logger = logging.getLogger(__name__)

# Check the flags, touch nothing, and exit with 0 or 2. Model and data need only be where the workers are.
CHECK_FLAG: Final = "--check_flags"
_FLAGS_ALONE: Final = f"{CHECK_FLAG}=flags"
_TIMEOUT_S: Final = 60


def check_flags(entry_point: str, args: Sequence[str], binary: str | None) -> None:
    """Asks the program whether it accepts `args`.

    A driver need not have the program, when it only submits to a cluster that does; then the workers are the first to
    look at the flags.

    Raises:
        ConfigError: The program refuses the flags, in its own words.
    """
    try:
        program = find_program(entry_point, binary)
    except ConfigError as error:
        logger.info("the flags are not checked here but on the workers: %s", error)
        return
    ran = subprocess.run(
        [program, *args, _FLAGS_ALONE],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=_TIMEOUT_S,
    )
    if "unexpected" in ran.stderr and CHECK_FLAG in ran.stderr:
        logger.info("%s is too old to check its flags beforehand: the workers will", program)
        return
    if ran.returncode == exit_codes.USAGE:
        raise ConfigError(f"{entry_point} refuses its flags: {ran.stderr.strip().removeprefix('error: ')}")
    if ran.returncode != exit_codes.OK:
        raise ConfigError(
            f"{program} does not run on this machine (exit code {ran.returncode}): {ran.stderr.strip()[-2000:]}"
        )

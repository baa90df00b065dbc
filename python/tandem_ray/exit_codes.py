"""The exit codes of workers and of whoever supervises them, as in `crates/launch/src/exit_code.rs`."""

from typing import Final

OK: Final = 0
FAILURE: Final = 1
# The command line or the configuration is wrong: starting again cannot help.
USAGE: Final = 2
# Asked to stop (preemption, Ctrl-C), finished the step and saved: start again to continue.
STOPPED_AFTER_SAVING: Final = 75
INTERRUPTED: Final = 130
TERMINATED: Final = 143

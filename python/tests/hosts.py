"""Two hosts with a Ray node each, made of network namespaces with a link between them.

Where namespaces are not permitted, the nodes have two loopback addresses instead, and there is no link to cut.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Final

from conftest import NODE, wait_until

ADDRESSES: Final = ("10.78.0.1", "10.78.0.2")
LOOPBACK: Final = ("127.0.0.2", "127.0.0.3")
# What a Ray node may take to end in an orderly way, before it is killed.
_END_S: Final = 5.0
# The command's own arguments follow. A host is told from another by what its kernel says it is.
_ENTER: Final = 'mount --bind "$0" /proc/sys/kernel/random/boot_id && exec "$@"'


class Hosts:
    """Two hosts, `0` and `1`, with the head on the first; gone when the block ends.

    Ray gives up a host that does not answer several times in a row, each time within `patience_s`.
    """

    def __init__(self, port: int, patience_s: int) -> None:
        # Ray's sockets are below this folder, and their paths must not be long.
        self._folder = Path(tempfile.mkdtemp(prefix="ray-hosts-"))
        self._names = tuple(f"tandem-{os.getpid()}-{port}-{host}" for host in "ab")
        self._nodes: dict[int, subprocess.Popen[bytes]] = {}
        self.separate = self._make()
        # A token of whoever runs the tests would be asked for by the head and be unknown to the others.
        self._environment = {"RAY_AUTH_MODE": "disabled", "RAY_health_check_timeout_ms": str(1000 * patience_s)}
        addresses = ADDRESSES if self.separate else LOOPBACK
        self.address = f"{addresses[0]}:{port}"
        self._arguments = (
            [*self._start(addresses[0]), "--head", f"--port={port}", "--include-dashboard=false"],
            [*self._start(addresses[1]), f"--address={self.address}"],
        )

    def __enter__(self) -> Hosts:  # noqa: PYI034 - Self needs Python 3.11
        try:
            self.start_node(0)
            self.start_node(1)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def within(self, host: int) -> list[str]:
        """What to put before a command that is to run on a host."""
        if not self.separate:
            return []
        identity = self._folder / str(host)
        return ["ip", "netns", "exec", self._names[host], "sh", "-c", _ENTER, str(identity)]

    def start_node(self, host: int) -> None:
        """Starts the Ray node of a host, and waits until it is up."""
        log = self._folder / f"node-{host}.log"
        with log.open("w") as file:
            self._nodes[host] = subprocess.Popen(
                [*self.within(host), *self._arguments[host], f"--temp-dir={self._folder / f'ray-{host}'}"],
                env={**os.environ, **self._environment},
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                start_new_session=True,
            )

        def is_up() -> bool:
            text = log.read_text()
            assert self._nodes[host].poll() is None, text
            return "--block" in text

        wait_until(f"the Ray node of host {host} is up", is_up)

    def node_has_ended(self, host: int) -> bool:
        """Whether the Ray node of a host is gone, of its own accord or because Ray gave it up."""
        return self._nodes[host].poll() is not None

    def end_node(self, host: int) -> None:
        """Ends the Ray node of a host, and what runs on it."""
        node = self._nodes[host]
        node.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            node.wait(_END_S)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(node.pid, signal.SIGKILL)
        node.wait()

    def link(self, state: str) -> None:
        """Cuts (`down`) or heals (`up`) the link between the hosts."""
        _ip("-n", self._names[0], "link", "set", "link0", state)

    def close(self) -> None:
        """Ends the nodes, the head last, and removes the hosts."""
        for host in sorted(self._nodes, reverse=True):
            self.end_node(host)
        self._remove()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _make(self) -> bool:
        try:
            for host, name in enumerate(self._names):
                (self._folder / str(host)).write_text(f"host {name}\n")
                _ip("netns", "add", name)
            a, b = self._names
            _ip("link", "add", "link0", "netns", a, "type", "veth", "peer", "name", "link0", "netns", b)
            for name, address in zip(self._names, ADDRESSES, strict=True):
                _ip("-n", name, "addr", "add", f"{address}/30", "dev", "link0")
                _ip("-n", name, "link", "set", "lo", "up")
                _ip("-n", name, "link", "set", "link0", "up")
        except (OSError, subprocess.CalledProcessError) as refused:
            print(f"no namespaces here, two loopback addresses instead: {refused}")
            self._remove()
            return False
        return True

    def _remove(self) -> None:
        for name in self._names:
            listed = subprocess.run(["ip", "netns", "pids", name], capture_output=True, text=True, check=False)
            for pid in listed.stdout.split():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)
            # The link goes with them.
            subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)

    def _start(self, address: str) -> list[str]:
        return [
            str(Path(sys.executable).parent / "ray"),
            "start",
            "--block",
            f"--node-ip-address={address}",
            f"--num-cpus={NODE['num_cpus']}",
            f"--object-store-memory={NODE['object_store_memory']}",
            '--resources={"slot": 2}',
        ]


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)

"""Hosts on one machine: Linux network namespaces with addresses of their own, joined by a switch; cut off and healed.

Needs root or user namespaces, and `unshare`, `nsenter` and `ip`. Where the machine forbids them, says so and skips.
"""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest

#: The hosts' network; the last number is the host's.
NETWORK = "10.77.0"


class Forbidden(Exception):
    """This machine does not let us make hosts."""


class Hosts:
    """A switch and the hosts on it. Use `hosts`."""

    def __init__(self, names: list[str], stack: ExitStack) -> None:
        user = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
        self._into_user = [] if os.geteuid() == 0 else ["--user", "--preserve-credentials"]
        self._switch = self._hold(["unshare", *user, "--net"], stack)
        self._run("ip", "link", "add", "switch", "type", "bridge")
        self._run("ip", "link", "set", "switch", "up")
        self.addresses = {name: f"{NETWORK}.{number}" for number, name in enumerate(names, start=1)}
        self._holders = {}
        for name, address in self.addresses.items():
            inside = ["nsenter", "--target", self._switch, *self._into_user, "unshare", "--net", "--uts"]
            self._holders[name] = holder = self._hold(inside, stack)
            self._run("ip", "link", "add", name, "type", "veth", "peer", "name", "eth0", "netns", holder)
            self._run("ip", "link", "set", name, "master", "switch", "up")
            for command in (
                ["hostname", name],
                ["ip", "link", "set", "lo", "up"],
                ["ip", "address", "add", f"{address}/24", "dev", "eth0"],
                ["ip", "link", "set", "eth0", "up"],
            ):
                _must([*self.on(name), *command])

    def on(self, name: str) -> tuple[str, ...]:
        """What goes before a command that is to run on the host."""
        return ("nsenter", "--target", self._holders[name], *self._into_user, "--net", "--uts", "--")

    def cut_off(self, name: str) -> None:
        """Unplug the host: what is sent to it or by it is lost."""
        self._run("ip", "link", "set", name, "down")

    def heal(self, name: str) -> None:
        """Plug it in again."""
        self._run("ip", "link", "set", name, "up")

    def _run(self, *command: str) -> None:
        _must(["nsenter", "--target", self._switch, *self._into_user, "--net", "--", *command])

    def _hold(self, inside: list[str], stack: ExitStack) -> str:
        """The id of a process that keeps a namespace open."""
        # `cat` says that it is there by giving back what it gets, and ends with its input.
        pipe = subprocess.PIPE
        holder = stack.enter_context(subprocess.Popen([*inside, "cat"], stdin=pipe, stdout=pipe, stderr=pipe))
        assert holder.stdin
        assert holder.stdout
        try:
            holder.stdin.write(b"\n")
            holder.stdin.flush()
        except BrokenPipeError:
            pass  # what it says on its way out is read below
        if holder.stdout.read(1) != b"\n":
            assert holder.stderr
            raise Forbidden(holder.stderr.read().decode().strip())
        return str(holder.pid)


@contextmanager
def hosts(*names: str) -> Iterator[Hosts]:
    """Hosts of these names while the block runs. Skips the test where the machine forbids them."""
    missing = [tool for tool in ("unshare", "nsenter", "ip", "hostname") if shutil.which(tool) is None]
    if missing:
        pytest.skip(f"no network namespaces here: {', '.join(missing)} is not installed")
    with ExitStack() as stack:
        try:
            made = Hosts(list(names), stack)
        except Forbidden as reason:
            pytest.skip(f"no network namespaces here: {reason}")
        yield made


def _must(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    if done.returncode:
        raise Forbidden(f"{' '.join(command)}: {done.stderr.strip()}")

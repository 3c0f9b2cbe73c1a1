"""A few hosts on this machine: network, mounts, processes and name in namespaces, and an sshd.

They share the disk but for ``/tmp/ray`` and the home folder, the processors, and nothing else: they
reach each other through a bridge alone. Needs root, iproute2, openssh-server and rsync.
"""

import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

NETWORK = "10.77.0"
BRIDGE = "gisgd-br"
TOOLS = {
    "ip": "iproute2",
    "sshd": "openssh-server",
    "rsync": "rsync",
    "ssh-keygen": "openssh-client",
}


def what_is_missing() -> str | None:
    """Why no hosts can be made here; None if they can."""
    path = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
    missing = [package for tool, package in TOOLS.items() if not shutil.which(tool, path=path)]
    if os.name != "posix" or not Path("/proc/self/ns/net").exists():
        return "needs Linux"
    if os.geteuid() != 0:
        return "needs root, to make network namespaces"
    if missing:
        return f"needs Debian's {', '.join(missing)}"
    probe = subprocess.run(["ip", "netns", "add", "gisgd-probe"], capture_output=True, text=True)
    if probe.returncode:
        return f"cannot make a network namespace here: {probe.stderr.strip()}"
    subprocess.run(["ip", "netns", "delete", "gisgd-probe"], check=True)
    return None


def run(*command: str, check: bool = True) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if check and done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")


class Hosts:
    """``count`` hosts with addresses NETWORK.11, .12, ...; this machine is NETWORK.1."""

    def __init__(self, folder: Path, count: int):
        self.folder, self.names = folder, [f"gisgd-host{i + 1}" for i in range(count)]
        self.key = folder / "key"
        self._sshds: list[subprocess.Popen[bytes]] = []

    @property
    def addresses(self) -> list[str]:
        return [f"{NETWORK}.{11 + i}" for i in range(len(self.names))]

    @property
    def home(self) -> Path:
        """The home folder on every host, each with its own there."""
        return self.folder / "home"

    def __enter__(self) -> "Hosts":
        self.remove()
        try:
            self._make()
        except BaseException:
            self.remove()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()

    def _make(self) -> None:
        run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(self.key))
        run("ip", "link", "add", BRIDGE, "type", "bridge")
        run("ip", "address", "add", f"{NETWORK}.1/24", "dev", BRIDGE)
        run("ip", "link", "set", BRIDGE, "up")
        Path("/run/sshd").mkdir(exist_ok=True)
        for index, (name, address) in enumerate(zip(self.names, self.addresses, strict=True)):
            run("ip", "netns", "add", name)
            inner, outer = f"gisgd-in{index}", f"gisgd-out{index}"
            run("ip", "link", "add", outer, "type", "veth", "peer", "name", inner)
            run("ip", "link", "set", outer, "master", BRIDGE, "up")
            run("ip", "link", "set", inner, "netns", name)
            for settings in (
                ("address", "add", f"{address}/24", "dev", inner),
                ("link", "set", inner, "up"),
                ("link", "set", "lo", "up"),
                ("route", "add", "default", "via", f"{NETWORK}.1"),
            ):
                run("ip", "-n", name, *settings)
            self._sshds.append(self._sshd(index))
        for address in self.addresses:
            self.wait_for_ssh(address)

    def _sshd(self, index: int) -> "subprocess.Popen[bytes]":
        name, folder = self.names[index], self.folder / self.names[index]
        for part in ("home", "ray"):
            (folder / part).mkdir(parents=True)
        (folder / "home" / ".bashrc").write_text("")
        for mounted in (Path("/tmp/ray"), self.home):
            mounted.mkdir(exist_ok=True)
        # The root user of this host lives elsewhere.
        users = Path("/etc/passwd").read_text()
        home = f"root:x:0:0:root:{self.home}:/bin/bash"
        (folder / "passwd").write_text(re.sub(r"(?m)^root:.*$", home, users))
        run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / "host_key"))
        (folder / "sshd_config").write_text(
            f"HostKey {folder / 'host_key'}\n"
            f"AuthorizedKeysFile {self.key}.pub\n"
            f"PidFile {folder / 'sshd.pid'}\n"
            "PermitRootLogin yes\nStrictModes no\nUsePAM no\nPasswordAuthentication no\n"
            "MaxStartups 50\nMaxSessions 50\n"
        )
        mounts = ((f"{folder}/home", self.home), (f"{folder}/ray", "/tmp/ray"))
        own = [
            f"mount --bind {of} {at}" for of, at in (*mounts, (f"{folder}/passwd", "/etc/passwd"))
        ]
        sshd = f"exec /usr/sbin/sshd -D -e -f {folder}/sshd_config"
        script = " && ".join([*own, f"hostname {name}", sshd])
        # Processes of its own as well: `ray stop` stops all that it sees.
        apart = ["--mount", "--uts", "--pid", "--fork", "--mount-proc", "--kill-child"]
        return subprocess.Popen(
            ["ip", "netns", "exec", name, "unshare", *apart, "sh", "-c", script],
            stdin=subprocess.DEVNULL,
            stdout=(folder / "sshd.log").open("wb"),
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def ssh(self, address: str, command: str) -> "subprocess.CompletedProcess[str]":
        """A command on a host, by a login shell."""
        options = ["-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null"]
        return subprocess.run(
            ["ssh", "-q", "-i", str(self.key), *options, f"root@{address}", command],
            capture_output=True,
            text=True,
            timeout=120,
        )

    def wait_for_ssh(self, address: str) -> None:
        deadline = time.monotonic() + 20
        while self.ssh(address, "true").returncode:
            if time.monotonic() > deadline:
                raise RuntimeError(f"sshd does not answer at {address}")
            time.sleep(0.2)

    def processes(self, index: int) -> list[int]:
        """All that runs on a host, its sshd included."""
        told = subprocess.run(
            ["ip", "netns", "pids", self.names[index]], capture_output=True, text=True
        )
        return [int(line) for line in told.stdout.split()]

    def kill(self, index: int) -> None:
        """The host is gone at once: every process of it by SIGKILL."""
        for pid in self.processes(index):
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue

    def remove(self) -> None:
        """Everything that was made, whatever state it is in."""
        for index in range(len(self.names)):
            for _ in range(20):
                self.kill(index)
                if not self.processes(index):
                    break
                time.sleep(0.1)
        for sshd in self._sshds:
            sshd.wait()
        self._sshds = []
        for index, name in enumerate(self.names):
            run("ip", "netns", "delete", name, check=False)
            run("ip", "link", "delete", f"gisgd-out{index}", check=False)
        run("ip", "link", "delete", BRIDGE, check=False)

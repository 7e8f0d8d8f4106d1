"""Three hosts on one machine: network namespaces with a switch between, a Ray node in each.

Needs root, `ip` and `tc` (iproute2); Linux only.
"""

import contextlib
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile
import time

PREFIX = f"dc{os.getpid() % 100000}"  # names of interfaces have at most 15 letters
SWITCH = f"{PREFIX}sw"
NETWORK = "10.77.0"
PORT = 6399
MEGABYTES = 100 * 2**20
# A host that says nothing for six seconds is given up; Ray's own patience is longer.
ENVIRONMENT = {
    "RAY_AUTH_MODE": "disabled",
    "RAY_health_check_period_ms": "500",
    "RAY_health_check_timeout_ms": "500",
    "RAY_health_check_failure_threshold": "12",
}


def why_not():
    """Why there can be no hosts here; None if there can."""
    if not sys.platform.startswith("linux"):
        return "network namespaces are Linux's"
    if os.geteuid():
        return "network namespaces need root"
    missing = [name for name in ("ip", "tc") if shutil.which(name) is None]
    if missing:
        return f"{' and '.join(missing)}, of iproute2, not found"
    tried = subprocess.run(["ip", "netns", "add", PREFIX], capture_output=True, text=True)
    if tried.returncode:
        return f"no network namespace: {tried.stderr.strip()}"
    run("ip", "netns", "delete", PREFIX)
    return None


def run(*command):
    subprocess.run(command, check=True, capture_output=True, text=True)


class Host:
    """A namespace with a cable to the switch."""

    def __init__(self, number):
        self.address = f"{NETWORK}.{number + 1}"
        self.name, self._cable = f"{PREFIX}h{number}", f"{PREFIX}c{number}"
        self._ray = None
        run("ip", "netns", "add", self.name)
        run("ip", "link", "add", self._cable, "type", "veth", "peer", "name", "eth0",
            "netns", self.name)  # fmt: skip
        run("ip", "link", "set", self._cable, "master", SWITCH, "up")
        self.inside("ip", "link", "set", "lo", "up")
        self.inside("ip", "address", "add", f"{self.address}/24", "dev", "eth0")
        self.inside("ip", "link", "set", "eth0", "up")
        self.inside("ip", "route", "add", "default", "dev", "eth0")  # Ray asks it who it is

    def inside(self, *command):
        run("ip", "netns", "exec", self.name, *command)

    def popen(self, *command, **options):
        environment = {**os.environ, **ENVIRONMENT}
        inside = ["ip", "netns", "exec", self.name, *command]
        return subprocess.Popen(inside, env=environment, **options)

    def start_ray(self, folder, *options):
        """A node, whose processes end with the one that is started here."""
        ray = str(pathlib.Path(sys.executable).parent / "ray")
        with (folder / f"{self.name}.txt").open("w") as output:
            self._ray = self.popen(
                ray, "start", "--block", f"--node-ip-address={self.address}", "--num-cpus=4",
                f"--object-store-memory={MEGABYTES}", "--disable-usage-stats", *options,
                stdout=output, stderr=output,
            )  # fmt: skip
        # One after the other: they share a folder on this machine, and find ports in it.
        for _ in range(300):
            said = (folder / f"{self.name}.txt").read_text()
            if "Ray runtime started" in said:
                return
            if self._ray.poll() is not None:
                break
            time.sleep(0.1)
        raise RuntimeError(f"No Ray on {self.name}: {said[-2000:]}")

    def cut_off(self):
        run("ip", "link", "set", self._cable, "down")

    def put_back(self):
        run("ip", "link", "set", self._cable, "up")

    def slow_down(self, rate):
        """What it sends and receives takes its time; `rate` as tc writes it."""
        limit = ("root", "tbf", "rate", rate, "burst", "16kb", "latency", "2s")
        run("tc", "qdisc", "replace", "dev", self._cable, *limit)
        self.inside("tc", "qdisc", "replace", "dev", "eth0", *limit)

    def speed_up(self):
        run("tc", "qdisc", "delete", "dev", self._cable, "root")
        self.inside("tc", "qdisc", "delete", "dev", "eth0", "root")

    def kill(self):
        """All of its processes at once, and nobody is told, as if the power were gone."""
        self.cut_off()
        listed = subprocess.run(
            ["ip", "netns", "pids", self.name], check=True, capture_output=True, text=True
        )
        for pid in listed.stdout.split():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
        if self._ray is not None:
            self._ray.wait()
            self._ray = None

    def remove(self):
        self.kill()
        run("ip", "link", "delete", self._cable)
        run("ip", "netns", "delete", self.name)


@contextlib.contextmanager
def connected(count):
    """So many hosts, of which the first has the head of a Ray cluster; with its address."""
    hosts = []
    with contextlib.ExitStack() as stack:
        # Sockets are there, whose paths may not be long.
        folder = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="dc")))
        run("ip", "link", "add", SWITCH, "type", "bridge")
        stack.callback(run, "ip", "link", "delete", SWITCH)
        run("ip", "link", "set", SWITCH, "up")
        for number in range(count):
            hosts.append(Host(number))
            stack.callback(hosts[-1].remove)
        head, *others = hosts
        address = f"{head.address}:{PORT}"
        head.start_ray(
            folder, "--head", f"--port={PORT}", "--include-dashboard=false",
            '--resources={"server": 1}', f"--temp-dir={folder}",
        )  # fmt: skip
        for host in others:
            host.start_ray(folder, f"--address={address}", '--resources={"work": 4}')
        yield hosts, address

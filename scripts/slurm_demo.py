"""A small grid through Slurm that loses a node; the table must be the same as without.

`make slurm-demo` calls it. It starts Slurm (munged, slurmctld, two slurmd) in a temporary folder of
this machine, with its own configuration, key and ports, and runs the same small study twice through
scripts/study.py: on this machine, and with the workflow profile of profiles/slurm. There, in the
middle of two pre-trainings, one node dies with all that runs on it, and the job on the other is
preempted. Both must go on from their checkpoints. Nothing is left running.
"""

import argparse
import contextlib
import getpass
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import yaml

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from helpers.base import files
from helpers.base.errors import PREEMPTED, UserError, run_main

ROOT = Path(__file__).resolve().parent.parent
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue", "scontrol", "sinfo")
NODES = ("node1", "node2")
STUDY = {
    "documents": 400,
    "train_rows": 192,
    "dev_rows": 48,
    "pretrain_steps": 240,
    "pretrain_warmup": 0.1,
    "checkpoint_steps": 20,
    "finetune_epochs": 3,
    "finetune_job": "task",  # three jobs a model, which the profile makes one group
    "models": ["bert", "electra"],
    "tasks": ["cola", "mrpc", "rte"],
    "seeds": [0],
}
PATTERNS = (
    "models/*/encoder/model.safetensors",
    "models/*/log.csv",
    "records/*/*/*.parquet",  # predictions
    "tables/summary.txt",
)
# What a site sets in its copy of the profile; and times that suit jobs of seconds.
SITE = {
    "latency-wait": 20,
    "slurm-status-command": "squeue",  # there is no accounting
    "slurm-init-seconds-before-status-checks": 4,
}
SLURM_CONF = """\
ClusterName=demo
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=10
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
GresTypes=gpu
SlurmdTimeout=10
ReturnToService=2
SlurmdParameters=config_overrides
NodeName={nodes} NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]},{ports[2]} \
CPUs=2 RealMemory=32000 Gres=gpu:1
PartitionName=all Nodes={nodes} Default=YES
"""
# Slurm wants a device for each GPU that it gives away; this machine need not have one.
GRES_CONF = "AutoDetect=off\nNodeName={nodes} Name=gpu File=/dev/null\n"


def missing() -> list[str]:
    """The programs of Slurm and munge that are not on this machine's path."""
    return [name for name in PROGRAMS if not shutil.which(name, path=_path())]


def _path() -> str:
    return os.pathsep.join([os.environ["PATH"], "/usr/sbin", "/sbin"])


class Cluster:
    """Slurm on this machine, in one folder: a controller and two nodes.

    Args:
        folder: A new folder; it holds configuration, key, sockets, state and logs.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = os.environ | {
            "SLURM_CONF": str(folder / "slurm.conf"),
            "PATH": f"{folder}/bin{os.pathsep}{_path()}",
        }
        self.daemons: dict[str, subprocess.Popen[bytes]] = {}

    def start(self) -> None:
        """Starts munge, the controller and the nodes, and waits until the nodes are idle.

        Raises:
            UserError: When a daemon ends, or the nodes do not become idle.
        """
        values = {
            "folder": self.folder,
            "host": socket.gethostname().split(".")[0],
            "user": getpass.getuser(),
            "nodes": ",".join(NODES),
            "ports": _free_ports(1 + len(NODES)),
        }
        self.folder.chmod(0o711)  # munge wants its socket within everyone's reach
        (self.folder / "state").mkdir()
        (self.folder / "slurm.conf").write_text(SLURM_CONF.format(**values), encoding="utf-8")
        (self.folder / "gres.conf").write_text(GRES_CONF.format(**values), encoding="utf-8")
        # The executor's steps lose SLURM_CONF, which clusters with a file in /etc do not need.
        srun = self.folder / "bin" / "srun"
        srun.parent.mkdir()
        real, conf = shutil.which("srun", path=_path()), self.environment["SLURM_CONF"]
        srun.write_text(f'#!/bin/sh\nSLURM_CONF={conf} exec {real} "$@"\n', encoding="utf-8")
        srun.chmod(0o755)
        key = self.folder / "munge.key"
        key.touch(mode=0o600)
        key.write_bytes(secrets.token_bytes(128))
        names = ("socket", "pid", "log", "seed")
        places = [f"--{n}{'' if n == 'socket' else '-file'}={self.folder}/munge.{n}" for n in names]
        self._daemon("munged", "--foreground", "--force", f"--key-file={key}", *places)
        self._wait("munge's socket", (self.folder / "munge.socket").exists, 10)
        self._daemon("slurmctld", "-D")
        for node in NODES:
            self.start_node(node)
        self._wait("idle nodes", lambda: self.states() == ["idle"] * len(NODES), 60)

    def start_node(self, node: str) -> None:
        """Starts the daemon of a node."""
        self._daemon(node, "-D", "-N", node, program="slurmd")

    def _daemon(self, name: str, *arguments: str, program: str = "") -> None:
        with (self.folder / f"{name}.out").open("ab") as out:
            self.daemons[name] = subprocess.Popen(
                [program or name, *arguments], env=self.environment, stdout=out, stderr=out
            )

    def states(self) -> list[str]:
        """The state of each node, as sinfo gives it."""
        return self.ask("sinfo", "--noheader", "--Node", "--format=%t").split()

    def ask(self, *command: str) -> str:
        """What a command of Slurm prints; empty when it fails."""
        done = subprocess.run(
            command, env=self.environment, capture_output=True, text=True, timeout=60
        )
        return done.stdout if done.returncode == 0 else ""

    def job_of(self, rule: str) -> tuple[str, str]:
        """Id and node of the running job of a rule, as ``pretrain_wildcards_bert``; else empty."""
        running = self.ask("squeue", "--noheader", "--states=R", "--format=%i %N %k")
        for line in running.splitlines():
            number, node, comment = line.split(maxsplit=2)
            if comment == f"rule_{rule}":
                return number, node
        return "", ""

    def kill_node(self, node: str) -> int:
        """Kills the daemon of a node and everything that runs on it, as a power cut would.

        Returns:
            The number of processes killed beside the daemon.
        """
        self.daemons[node].kill()
        self.daemons[node].wait()
        # A step's own process has the daemon's environment, the job's processes the node's name.
        steps = [pid for pid in self._processes() if _name(pid).startswith("slurmstepd")]
        on_node = [
            pid for pid in self._processes() if _environment(pid).get("SLURMD_NODENAME") == node
        ]
        parents = {_parent(pid) for pid in on_node}
        killed = [*(pid for pid in steps if pid in parents), *on_node]
        for pid in killed:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return len(killed)

    def stop(self) -> None:
        """Ends every daemon and every process of every job."""
        for name in (*NODES, "slurmctld", "munged"):
            if name in self.daemons:
                self.daemons[name].terminate()
        for daemon in self.daemons.values():
            try:
                daemon.wait(10)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()
        until = time.monotonic() + 20
        while (left := self._processes()) and time.monotonic() < until:
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.1)

    def left(self) -> int:
        """The number of processes of this cluster that are alive."""
        return len(self._processes())

    def _processes(self) -> list[int]:
        """Every process but this one that was started with this cluster's configuration."""
        ours = self.environment["SLURM_CONF"]
        return [
            pid
            for pid in (int(p.name) for p in Path("/proc").iterdir() if p.name.isdigit())
            if _environment(pid).get("SLURM_CONF") == ours
        ]

    def _wait(self, what: str, ready: Callable[[], bool], seconds: float) -> None:
        until = time.monotonic() + seconds
        while not ready():
            dead = [name for name, daemon in self.daemons.items() if daemon.poll() is not None]
            if dead or time.monotonic() > until:
                raise UserError(
                    f"{what}: not there after {seconds:g} s"
                    + (f"; ended: {', '.join(dead)}" if dead else "")
                    + f"\n{_last_lines(self.folder)}"
                )
            time.sleep(0.5)


def _environment(pid: int) -> dict[str, str]:
    """The environment a process was started with; empty when it has ended or is not ours."""
    try:
        text = Path(f"/proc/{pid}/environ").read_bytes().decode(errors="replace")
    except OSError:
        return {}
    return dict(entry.split("=", 1) for entry in text.split("\0") if "=" in entry)


def _status(pid: int, field: str) -> str:
    try:
        text = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    except OSError:
        return ""
    found = re.search(rf"^{field}:\s*(.*)$", text, re.MULTILINE)
    return found[1] if found else ""


def _name(pid: int) -> str:
    return _status(pid, "Name")


def _parent(pid: int) -> int:
    return int(_status(pid, "PPid") or 0)


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def _last_lines(folder: Path) -> str:
    """The ends of the daemons' logs."""
    texts = []
    for path in sorted(folder.glob("*.log")):
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()[-5:]
        texts += [f"{path.name}: {line}" for line in lines]
    return "\n".join(texts)


@contextlib.contextmanager
def running(folder: Path) -> Iterator[Cluster]:
    """A cluster that has started; it is stopped however this ends."""
    cluster = Cluster(folder)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()


def profile(folder: Path, runs: str) -> Path:
    """Writes the study as a profile whose runs are kept in `runs` of `folder`."""
    values = yaml.safe_load((ROOT / "profiles" / "tiny.yaml").read_text(encoding="utf-8"))
    path = folder / f"{runs}.yaml"
    values |= STUDY | {"profile": "demo", "runs": str(folder / runs)}
    files.write_text(path, yaml.safe_dump(values))
    return path


def workflow(folder: Path) -> Path:
    """Writes the workflow profile: profiles/slurm with what this cluster needs."""
    values = yaml.safe_load((ROOT / "profiles/slurm/config.yaml").read_text(encoding="utf-8"))
    files.write_text(folder / "config.yaml", yaml.safe_dump(values | SITE))
    return folder


def disturb(cluster: Cluster, study: Path, process: subprocess.Popen[bytes]) -> None:
    """Takes a node from one pre-training and preempts the other, each after its first checkpoint.

    Raises:
        UserError: When the study ends before.
    """
    first, second = STUDY["models"]
    number, node = _training(cluster, study, first, process)
    killed = cluster.kill_node(node)
    print(f"*** {first}, job {number}: {node} dies with {killed} processes (SIGKILL)", flush=True)
    number, node = _training(cluster, study, second, process)
    cluster.ask("scontrol", "requeue", number)
    print(f"*** {second}, job {number}: preempted on {node} (SIGTERM, queued again)", flush=True)


def _training(
    cluster: Cluster, study: Path, model: str, process: subprocess.Popen[bytes]
) -> tuple[str, str]:
    """Waits until a model is in training and has saved a checkpoint; id and node of its job."""
    while process.poll() is None:
        job = cluster.job_of(f"pretrain_wildcards_{model}")
        if job[0] and any((study / "models" / model).glob("checkpoint-*.safetensors")):
            return job
        time.sleep(0.2)
    raise UserError(f"{model}: the grid ended before its pre-training could be disturbed")


def run(
    profile: Path,
    cluster: Cluster | None = None,
    workflow: Path | None = None,
    meanwhile: Callable[[subprocess.Popen[bytes]], None] = lambda _: None,
) -> None:
    """Runs the study through the front door, as `make book` does.

    Args:
        profile: The study.
        cluster: Slurm, where the jobs shall go there.
        workflow: With it, the folder of the workflow profile.
        meanwhile: What is done beside it.

    Raises:
        UserError: When the study does not end well.
    """
    more = ["--cluster", str(workflow)] if workflow else []
    study = [sys.executable, "-m", "helpers.study.cli", "run", "--profile", str(profile)]
    process = subprocess.Popen(
        [*study, "--cores", "2", *more], env=cluster.environment if cluster else None
    )
    try:
        meanwhile(process)
        status = process.wait()
    finally:
        if process.poll() is None:
            process.terminate()  # it ends its jobs first
            process.wait(120)
    if status:
        raise UserError(f"{profile.stem}: the study ended with status {status}")


def outcome(study: Path) -> dict[str, str]:
    """What is compared: the table as text, hashes of weights, loss logs and predictions."""
    names = [path for pattern in PATTERNS for path in sorted(study.glob(pattern))]
    return {str(path.relative_to(study)): files.sha256(path) for path in names}


def main() -> int:
    """Command line; 1 when the tables differ."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.parse_args()
    if absent := missing():
        raise UserError(
            f"not on this machine: {', '.join(absent)}; Debian has them in munge, slurm-client, "
            "slurmctld and slurmd"
        )
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(PREEMPTED))
    with tempfile.TemporaryDirectory(prefix="slurm-") as name:
        folder = Path(name)
        print("On this machine.", flush=True)
        run(profile(folder, "local"))
        print("Through Slurm.", flush=True)
        through_slurm(folder)
        return compare(folder / "local" / "demo", folder / "slurm" / "demo")


def through_slurm(folder: Path) -> None:
    """Starts Slurm in ``cluster`` of a folder and runs the study there, in ``slurm/demo``.

    Raises:
        UserError: When Slurm or the study does not end well, or leaves a process behind.
    """
    place, study = folder / "cluster", folder / "slurm" / "demo"
    place.mkdir()
    with running(place) as cluster:
        run(
            profile(folder, "slurm"),
            cluster,
            workflow(folder / "workflow"),
            lambda process: disturb(cluster, study, process),
        )
    if left := cluster.left():
        raise UserError(f"{left} processes of Slurm or its jobs are left")


def compare(one: Path, other: Path) -> int:
    """Prints whether table, weights, loss logs and predictions are the same bytes.

    Returns:
        0 when they are, else 1.
    """
    wanted, found = outcome(one), outcome(other)
    for name in sorted({*wanted, *found}):
        same = wanted.get(name) == found.get(name)
        print(f"{'same' if same else 'DIFFERS':<8}{name}")
    return int(wanted != found)


if __name__ == "__main__":
    run_main(main)

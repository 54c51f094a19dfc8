"""Slurm on this machine, in one folder: munge, a controller and two nodes; nothing outlives it."""

import contextlib
import getpass
import os
import secrets
import shutil
import socket
import subprocess
import time

import psutil

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue", "scontrol", "sinfo")
NODES = ("node1", "node2")
PATH = os.pathsep.join([os.environ["PATH"], "/usr/sbin", "/sbin"])
MISSING = [name for name in PROGRAMS if not shutil.which(name, path=PATH)]
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


def wait(ready, seconds=90, what="it"):
    until = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < until, f"{what}: not there after {seconds} s"
        time.sleep(0.3)


@contextlib.contextmanager
def running(folder):
    """A cluster that has started; it is stopped however this ends."""
    folder.mkdir()
    cluster = Cluster(folder)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()


class Cluster:
    def __init__(self, folder):
        self.folder, self.daemons = folder, {}
        self.environment = os.environ | {
            "SLURM_CONF": str(folder / "slurm.conf"),
            "PATH": f"{folder}/bin{os.pathsep}{PATH}",
        }

    def start(self):
        """Starts the daemons and waits until the nodes are idle."""
        values = {
            "folder": self.folder,
            "host": socket.gethostname().split(".")[0],
            "user": getpass.getuser(),
            "nodes": ",".join(NODES),
            "ports": free_ports(1 + len(NODES)),
        }
        self.folder.chmod(0o711)  # munge wants its socket within everyone's reach
        (self.folder / "state").mkdir()
        (self.folder / "slurm.conf").write_text(SLURM_CONF.format(**values), encoding="utf-8")
        (self.folder / "gres.conf").write_text(GRES_CONF.format(**values), encoding="utf-8")
        # The executor's steps lose SLURM_CONF, which clusters with a file in /etc do not need.
        srun = self.folder / "bin" / "srun"
        srun.parent.mkdir()
        real, conf = shutil.which("srun", path=PATH), self.environment["SLURM_CONF"]
        srun.write_text(f'#!/bin/sh\nSLURM_CONF={conf} exec {real} "$@"\n', encoding="utf-8")
        srun.chmod(0o755)
        key = self.folder / "munge.key"
        key.touch(mode=0o600)
        key.write_bytes(secrets.token_bytes(128))
        names = ("socket", "pid", "log", "seed")
        places = [f"--{n}{'' if n == 'socket' else '-file'}={self.folder}/munge.{n}" for n in names]
        self.daemon("munged", "--foreground", "--force", f"--key-file={key}", *places)
        wait((self.folder / "munge.socket").exists, 10, "munge's socket")
        self.daemon("slurmctld", "-D")
        for node in NODES:
            self.daemon(node, "-D", "-N", node, program="slurmd")
        states = ("sinfo", "--noheader", "--Node", "--format=%t")
        wait(lambda: self.ask(*states).split() == ["idle"] * len(NODES), 60, "idle nodes")

    def daemon(self, name, *arguments, program=""):
        with (self.folder / f"{name}.out").open("ab") as out:
            self.daemons[name] = subprocess.Popen(
                [program or name, *arguments], env=self.environment, stdout=out, stderr=out
            )

    def ask(self, *command):
        """What a command of Slurm prints; empty when it fails."""
        done = subprocess.run(
            command, env=self.environment, capture_output=True, text=True, timeout=60
        )
        return done.stdout if done.returncode == 0 else ""

    def job_of(self, rule):
        """Id and node of the running job of a rule, as ``pretrain_wildcards_bert``; else empty."""
        running = self.ask("squeue", "--noheader", "--states=R", "--format=%i %N %k")
        for line in running.splitlines():
            number, node, comment = line.split(maxsplit=2)
            if comment == f"rule_{rule}":
                return number, node
        return "", ""

    def kill_node(self, node):
        """Kills a node's daemon and all that runs on it, as a power cut would; says how many."""
        self.daemons[node].kill()
        self.daemons[node].wait()
        # A step's own process has the daemon's environment, the job's processes the node's name.
        on_node = [p for p in self.processes() if environment(p).get("SLURMD_NODENAME") == node]
        parents = {parent.pid for p in on_node for parent in p.parents()}
        steps = [p for p in self.processes() if "slurmstepd" in p.name() and p.pid in parents]
        for process in [*steps, *on_node]:
            kill(process)
        return len(steps) + len(on_node)

    def stop(self):
        """Ends every daemon and every process of every job."""
        for name in (*NODES, "slurmctld", "munged"):
            if name in self.daemons:
                self.daemons[name].terminate()
        running = [d for d in self.daemons.values() if d.poll() is None]
        psutil.wait_procs([psutil.Process(daemon.pid) for daemon in running], 10)
        until = time.monotonic() + 20
        while (left := self.processes()) and time.monotonic() < until:
            for process in left:
                kill(process)
            time.sleep(0.1)
        for daemon in self.daemons.values():
            daemon.wait(10)

    def processes(self):
        """Every process that was started with this cluster's configuration."""
        ours = self.environment["SLURM_CONF"]
        return [p for p in psutil.process_iter() if environment(p).get("SLURM_CONF") == ours]


def environment(process):
    """What a process was started with; empty when it has ended or is not ours to read."""
    try:
        return process.environ()
    except (psutil.Error, OSError):
        return {}


def kill(process):
    with contextlib.suppress(psutil.NoSuchProcess):
        process.kill()


def free_ports(count):
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]

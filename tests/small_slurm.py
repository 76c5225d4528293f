"""A Slurm of one node for a test: munged, slurmctld and slurmd of Debian's slurm-wlm.

Key, sockets, ports and state lie in a folder of its own: nothing of a Slurm that the machine has is read or
touched. Needs root, as slurmd does.
"""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

NEEDED = ("munged", "slurmctld", "slurmd", "sbatch", "scancel", "squeue", "scontrol")
PATIENCE = 120  # seconds until the node is there
_PATH = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])


def missing() -> str:
    """Why no Slurm can be started here, in words; "" where one can."""
    absent = [name for name in NEEDED if shutil.which(name, path=_PATH) is None]
    if absent:
        return f"needs {', '.join(absent)} (Debian: slurm-wlm, munge)"
    return "" if os.geteuid() == 0 else "needs root, to start slurmd"


class SmallSlurm:
    """Starts at once; a context manager that ends what it started. cpus : that the node says it has."""

    def __init__(self, folder: Path, cpus: int = 4) -> None:
        self.folder = folder
        self.environment = {**os.environ, "PATH": _PATH, "SLURM_CONF": str(folder / "slurm.conf")}
        self._daemons: list[subprocess.Popen[bytes]] = []
        for name in ("state", "spool"):
            (folder / name).mkdir(parents=True)
        folder.chmod(0o755)
        key = folder / "munge.key"
        key.write_bytes(secrets.token_bytes(128))
        key.chmod(0o400)
        (folder / "slurm.conf").write_text(self._configuration(cpus))
        try:
            self._start(
                "munged", "--foreground", "--force", f"--key-file={key}", f"--socket={folder}/munge.socket",
                f"--pid-file={folder}/munge.pid", f"--seed-file={folder}/munge.seed",
                f"--log-file={folder}/munge.log",
            )  # fmt: skip
            self._until(lambda: (folder / "munge.socket").exists(), "munged")
            self._start("slurmctld", "-D", "-f", str(folder / "slurm.conf"))
            self._start("slurmd", "-D", "-f", str(folder / "slurm.conf"))
            self._until(lambda: "idle" in self.asked("sinfo", "--noheader", "--format=%t"), "the node")
        except BaseException:
            self.close()
            raise

    def _configuration(self, cpus: int) -> str:
        host = socket.gethostname().split(".")[0]
        lines = {
            "ClusterName": "hz",
            "SlurmctldHost": f"{host}(127.0.0.1)",
            "SlurmctldPort": _free_port(),
            "SlurmdPort": _free_port(),
            "AuthType": "auth/munge",
            "AuthInfo": f"socket={self.folder}/munge.socket",
            "SlurmUser": "root",
            "SlurmdUser": "root",
            "StateSaveLocation": self.folder / "state",
            "SlurmdSpoolDir": self.folder / "spool",
            "SlurmctldPidFile": self.folder / "slurmctld.pid",
            "SlurmdPidFile": self.folder / "slurmd.pid",
            "SlurmctldLogFile": self.folder / "slurmctld.log",
            "SlurmdLogFile": self.folder / "slurmd.log",
            "ProctrackType": "proctrack/linuxproc",
            "TaskPlugin": "task/none",
            "JobAcctGatherType": "jobacct_gather/none",
            "SelectType": "select/cons_tres",
            "SelectTypeParameters": "CR_CPU",
            "SlurmdParameters": "config_overrides",
            "SchedulerParameters": "sched_interval=2,sched_min_interval=0",  # s, us: no waiting
            "ReturnToService": 2,
            "KillWait": 30,  # Slurm's own default
            "MinJobAge": 86400,  # seconds that an ended job is remembered
            "MpiDefault": "none",
            "PropagateResourceLimits": "NONE",
        }
        text = "".join(f"{name}={value}\n" for name, value in lines.items())
        text += f"NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} State=UNKNOWN\n"
        return text + "PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP\n"

    def _start(self, *words: str) -> None:
        daemon = subprocess.Popen(
            words, env=self.environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        self._daemons.append(daemon)

    def _until(self, seen: Callable[[], bool], what: str) -> None:
        limit = time.monotonic() + PATIENCE
        while not seen():
            if time.monotonic() > limit or any(daemon.poll() is not None for daemon in self._daemons):
                logs = {path.name: path.read_text()[-2000:] for path in self.folder.glob("*.log")}
                raise RuntimeError(f"{what} did not come up: {logs}")
            time.sleep(0.2)

    def asked(self, *words: str) -> str:
        """What a command of Slurm prints."""
        done = subprocess.run(words, env=self.environment, capture_output=True, text=True, check=False)
        return done.stdout

    def submit(self, script: Path, *options: str) -> str:
        """The number of a job."""
        done = subprocess.run(
            ["sbatch", "--parsable", *options, str(script)],
            env=self.environment, capture_output=True, text=True, check=True,
        )  # fmt: skip
        return done.stdout.strip().split(";")[0]

    def states(self, job: str) -> dict[str, str]:
        """The state of every element of a job array, by its number."""
        listed = self.asked(
            "squeue", "--noheader", "--array", f"--jobs={job}", "--states=all", "--format=%K %T"
        )
        return dict(line.split() for line in listed.splitlines())

    def close(self) -> None:
        for daemon in reversed(self._daemons):
            daemon.terminate()
        for daemon in self._daemons:
            try:
                daemon.wait(20)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()

    def __enter__(self) -> SmallSlurm:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])

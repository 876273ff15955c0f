"""What every private part has in common: a folder, one process, and an end by pid only.

A part never touches the system's own instance of the same software: its data, sockets and logs are
below a folder of its own, and it listens on the loopback interface only.
"""

from __future__ import annotations

import contextlib
import glob
import os
import pathlib
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Self

TAIL_LINES = 30
PORTS = range(15_000, 30_000)


class PartError(Exception):
    """A part did not do what it should; the message carries the end of its log."""


class PartMissing(PartError):
    """The part is not installed on this machine."""


def find_binary(name: str, package: str, *places: str) -> str:
    """The path of a program, from PATH or from where Debian puts it; else PartMissing."""
    for pattern in places:
        found = sorted(glob.glob(os.path.join(pattern, name)))
        if found:
            return found[-1]
    on_path = shutil.which(name)
    if on_path is None:
        raise PartMissing(f"{name} is not installed (Debian package {package}): run `make deps`")
    return on_path


def free_port() -> int:
    """A loopback TCP port that nobody listens on now.

    Below those that the kernel gives to outgoing connections: one of these could take the port
    between now and the start of the part it is meant for.
    """
    dice = random.SystemRandom()
    while True:
        port = dice.choice(PORTS)
        with (
            contextlib.suppress(OSError),
            socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe,
        ):
            probe.bind(("127.0.0.1", port))
            return port


def answers(port: int) -> bool:
    """True when something accepts connections on a loopback port."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.settimeout(0.5)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def wait_for(ready: Callable[[], bool], timeout_s: float, failure: Callable[[], PartError]) -> None:
    """Return once `ready()`; raise `failure()` when that takes longer than `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while not ready():
        if time.monotonic() > deadline:
            raise failure()
        time.sleep(0.05)


class Process:
    """One daemon in the foreground, its output in a file, in a session of its own."""

    def __init__(self, argv: Sequence[str], env: Mapping[str, str], log: pathlib.Path) -> None:
        with log.open("ab") as sink:
            self.popen = subprocess.Popen(
                list(argv),
                env=dict(env),
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                cwd="/",
            )

    @property
    def pid(self) -> int:
        return self.popen.pid

    def running(self) -> bool:
        return self.popen.poll() is None

    def signal(self, number: int) -> None:
        if self.running():
            self.popen.send_signal(number)

    def end(self, number: int, timeout_s: float) -> None:
        """Send a signal and wait; after `timeout_s` the whole session is killed."""
        # A stopped process does not see SIGTERM.
        self.signal(signal.SIGCONT)
        self.signal(number)
        try:
            self.popen.wait(timeout_s)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.popen.pid, signal.SIGKILL)
            self.popen.wait(timeout_s)


class Part:
    """A private part; a context manager that starts it, and removes its folder in the end.

    `restart` after `kill` finds the same data on the same ports.
    """

    name = "part"
    start_timeout_s = 60.0
    stop_signal = signal.SIGTERM
    stop_timeout_s = 30.0

    def __init__(self, folder: pathlib.Path | None = None) -> None:
        """`folder`: where to keep everything; without it a temporary one, removed by `close`."""
        self._temporary = folder is None
        if folder is None:
            # In /tmp, whatever TMPDIR says: the path of a socket may not be long.
            folder = pathlib.Path(tempfile.mkdtemp(prefix=f"muster-{self.name}-", dir="/tmp"))
        self.folder = folder
        self.folder.mkdir(parents=True, exist_ok=True)
        # Parts that drop root must be able to reach what is theirs below it.
        self.folder.chmod(0o755)
        self.process: Process | None = None

    # what a subclass says

    def prepare(self) -> None:
        """Make the data folder, once."""

    def command(self) -> tuple[list[str], dict[str, str]]:
        """Argument list and environment of the daemon."""
        raise NotImplementedError

    def ready(self) -> bool:
        """True when the part answers."""
        raise NotImplementedError

    def clean_up(self) -> None:
        """End what outlives the daemon itself."""

    # what everybody does with it

    @property
    def log(self) -> pathlib.Path:
        return self.folder / f"{self.name}.log"

    @property
    def pid(self) -> int:
        """The daemon's process id."""
        if self.process is None:
            raise PartError(f"{self.name} is not running")
        return self.process.pid

    def start(self) -> Self:
        """Start it and wait until it answers; PartError with the log's end when it does not."""
        if self.process is not None and self.process.running():
            return self
        self.prepare()
        argv, env = self.command()
        self.process = Process(argv, env, self.log)
        self.wait_ready()
        return self

    def wait_ready(self, timeout_s: float | None = None) -> None:
        """Return when the part answers."""
        limit = self.start_timeout_s if timeout_s is None else timeout_s

        def ready() -> bool:
            if self.process is None or not self.process.running():
                raise self._failure("ended at its start")
            return self.ready()

        wait_for(ready, limit, lambda: self._failure(f"did not answer within {limit:g} s"))

    def stop(self) -> None:
        """End it in good order."""
        if self.process is not None:
            self.process.end(self.stop_signal, self.stop_timeout_s)
            self.process = None

    def kill(self) -> None:
        """kill -9."""
        if self.process is not None:
            self.process.end(signal.SIGKILL, self.stop_timeout_s)
            self.process = None

    def restart(self) -> None:
        """Stop and start again, with the same data and ports."""
        self.stop()
        self.start()

    def freeze(self) -> None:
        """SIGSTOP: the process is there and says nothing; returns when every thread stands."""
        if self.process is not None:
            self.process.signal(signal.SIGSTOP)
            pid = self.process.pid
            wait_for(lambda: stands_still(pid), 10.0, lambda: self._failure("does not freeze"))

    def thaw(self) -> None:
        """SIGCONT."""
        if self.process is not None:
            self.process.signal(signal.SIGCONT)

    def close(self) -> None:
        """Stop it and forget it: a temporary folder goes too."""
        try:
            self.stop()
            self.clean_up()
        finally:
            if self._temporary:
                shutil.rmtree(self.folder, ignore_errors=True)

    def log_tail(self) -> str:
        """The last lines of the part's log."""
        try:
            lines = self.log.read_text(errors="replace").splitlines()
        except OSError:
            return "(no log)"
        return "\n".join(lines[-TAIL_LINES:])

    def _failure(self, what: str) -> PartError:
        return PartError(f"{self.name} {what}; the end of {self.log}:\n{self.log_tail()}")

    def __enter__(self) -> Self:
        try:
            return self.start()
        except BaseException:
            self.close()
            raise

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def run(
    argv: Sequence[str],
    env: Mapping[str, str] | None = None,
    timeout_s: float = 60.0,
    given: str = "",
) -> str:
    """The output of a helper program, `given` on its input; PartError when it fails."""
    done = subprocess.run(
        list(argv),
        env=None if env is None else dict(env),
        input=given,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
        cwd="/",
    )
    if done.returncode != 0:
        raise PartError(f"{' '.join(argv)}: exit {done.returncode}: {done.stdout}{done.stderr}")
    return done.stdout


def as_user(user: str) -> list[str]:
    """The command prefix that drops root to `user`; nothing when we are not root."""
    return ["setpriv", f"--reuid={user}", f"--regid={user}", "--init-groups"] if is_root() else []


def is_root() -> bool:
    return os.geteuid() == 0


def give_to(user: str, *folders: pathlib.Path) -> None:
    """Make folders, owned by the user a part runs as."""
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
        if is_root():
            shutil.chown(folder, user, user)
        folder.chmod(0o700)


def children_of(pid: int) -> set[int]:
    """The process ids of the direct children of a process."""
    found: set[int] = set()
    for task in pathlib.Path(f"/proc/{pid}/task").glob("*/children"):
        found.update(int(child) for child in task.read_text().split())
    return found


def stands_still(pid: int) -> bool:
    """True when every thread of a process is stopped."""
    states = [
        stat.read_text().rpartition(")")[2].split()[0]
        for stat in pathlib.Path(f"/proc/{pid}/task").glob("*/stat")
    ]
    return all(state in "Tt" for state in states)

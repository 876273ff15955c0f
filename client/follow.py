"""Following a job to its end, through the death and return of managers."""

from __future__ import annotations

import shutil
from typing import Any, TextIO

from client.output import printable
from client.rpc import Client
from common.errors import MusterError, RemoteError
from common.runtime import Runtime
from common.states import JOB, JobState

FIRST_PAUSE_S = 0.05
LONGEST_PAUSE_S = 1.0
LOOK_TIMEOUT_S = 3.0

# A fleet that restarts says one of these for a while; the job is safe in its database meanwhile.
PASSING = frozenset(
    {"NO_MANAGER", "BROKER_UNAVAILABLE", "DATABASE_UNAVAILABLE", "CALL_TIMEOUT", "CONFLICT"}
)


class WaitTimeout(MusterError):
    """The job had not ended when the time to wait for it was over; it goes on."""

    code = "WAIT_TIMEOUT"

    def __init__(self, job: dict[str, Any], limit_s: float) -> None:
        super().__init__(
            f"job {job['uuid']} is still {job['state']} after {limit_s:g} s{_waiting(job)}",
            f"go on waiting with: muster job wait {job['uuid']}",
        )
        self.job = job


class Progress:
    """One line that is rewritten on a terminal, and a line for each change elsewhere."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._rewrites = stream.isatty()
        self._shown = ""

    def say(self, text: str) -> None:
        """Show `text`, unless it is what was shown last."""
        if text == self._shown:
            return
        self._shown = text
        text = printable(text)
        if self._rewrites:
            # A line that wraps could not be rewritten.
            text = text[: shutil.get_terminal_size().columns - 1]
        self._stream.write(f"\r{text}\x1b[K" if self._rewrites else f"{text}\n")
        self._stream.flush()

    def end(self) -> None:
        """Leave the last line standing."""
        if self._rewrites and self._shown:
            self._stream.write("\n")
            self._stream.flush()


def ended(job: dict[str, Any]) -> bool:
    """True when nothing more can become of the job."""
    return str(job.get("state")) in {str(state) for state in JOB.terminal}


def failure(job: dict[str, Any]) -> MusterError | None:
    """Why a job that has ended did not succeed; None when it did or has not ended."""
    if not ended(job) or job["state"] == JobState.SUCCEEDED:
        return None
    unconfirmed = " (unconfirmed)" if job.get("unconfirmed") else ""
    return RemoteError(
        {
            "code": job.get("error_code") or f"JOB_{job['state']}",
            "message": job.get("error") or f"the job ended {job['state']}{unconfirmed}",
            "remedy": f"muster job show {job.get('uuid')}",
        }
    )


def to_the_end(
    client: Client, job: dict[str, Any], progress: Progress, runtime: Runtime, limit_s: float
) -> dict[str, Any]:
    """The job as it ended; WaitTimeout when that took longer than `limit_s` seconds."""
    uuid = job["uuid"]
    deadline = runtime.monotonic() + limit_s
    pause = FIRST_PAUSE_S
    progress.say(_line(job))
    while not ended(job):
        left = deadline - runtime.monotonic()
        if left <= 0:
            raise WaitTimeout(job, limit_s)
        runtime.sleep(min(pause, left))
        pause = min(LONGEST_PAUSE_S, 1.5 * pause)
        try:
            job = client.ask_once("job_show", min(LOOK_TIMEOUT_S, max(left, 0.1)), job=uuid)
        except MusterError as exc:
            if exc.code not in PASSING:
                raise
            progress.say(f"{_line(job)} - {exc.code}, asking again")
        else:
            progress.say(_line(job))
    return job


def _line(job: dict[str, Any]) -> str:
    about = " ".join(str(job[key]) for key in ("kind", "instance") if job.get(key))
    step = f", {job['step']}" if job.get("step") and not ended(job) else ""
    return f"job {job['uuid']} {about}: {job['state']}{step}{_waiting(job)}"


def _waiting(job: dict[str, Any]) -> str:
    if ended(job) or not job.get("waiting_for"):
        return ""
    return f", waiting: {job['waiting_for']}"

"""What all commands share: columns, output, and the life of a job that a verb has started."""

from __future__ import annotations

import argparse
import contextlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from cliff.lister import Lister

from client import follow, usage
from client.output import Formatters, Worded, printable
from client.rpc import operator
from common.errors import MusterError

if TYPE_CHECKING:
    from client.main import Muster

Answer = dict[str, Any]
Rows = tuple[Sequence[str], Iterable[Sequence[Any]]]

JOB_COLUMNS = ("uuid", "kind", "instance", "host", "state", "waiting_for")
DECISION_COLUMNS = ("vm", "name", "host", "decision", "row", "reason")


class Command(Lister):
    """A verb: prints rows, or one object when `single` is set; then raises `verdict`, if any."""

    app: Muster
    words: ClassVar[Mapping[str, Callable[[Any], str]]] = {}

    def __init__(self, app: Muster, app_args: Any, cmd_name: str | None = None) -> None:
        super().__init__(app, app_args, cmd_name)
        self.single = False
        self.verdict: MusterError | None = None
        self.exit_code = 0

    # The columns that are known before anything is asked; a wrong `-c` must change nothing.
    def columns_of(self, args: argparse.Namespace) -> Sequence[str]:
        """The columns of the output, or none when only the answer tells them."""
        raise NotImplementedError

    def run(self, parsed_args: argparse.Namespace) -> int:
        known = self.columns_of(parsed_args)
        if known:
            self._generate_columns_and_selector(parsed_args, known)
            parsed_args.sort_columns = [
                self._column_named(name, known) for name in parsed_args.sort_columns
            ]
        super().run(parsed_args)
        if self.verdict is not None:
            raise self.verdict
        return self.exit_code

    def rows(self, columns: Sequence[str], objects: Iterable[Answer]) -> Rows:
        """What cliff prints; a key that a manager does not send is null."""
        return columns, [[self._cell(c, one.get(c)) for c in columns] for one in objects]

    def one(self, columns: Sequence[str], found: Answer) -> Rows:
        """As `rows`, for a single object."""
        self.single = True
        return self.rows(columns, [found])

    def tell(self, answer: Answer) -> None:
        """Show what the operator must know before he reads the answer."""
        for notice in answer.get("notices", ()):
            self.app.stderr.write(f"notice: {printable(notice)}\n")

    def produce_output(
        self,
        parsed_args: argparse.Namespace,
        column_names: Sequence[str],
        data: Iterable[Sequence[Any]],
    ) -> int:
        if not self.single:
            return super().produce_output(parsed_args, column_names, data)
        columns, selector = self._generate_columns_and_selector(parsed_args, column_names)
        (row,) = data
        if selector:
            row = list(self._compress_iterable(row, selector))
        formatter: Any = self.formatter
        formatter.emit_one(columns, row, self.app.stdout, parsed_args)
        return 0

    def _cell(self, column: str, value: Any) -> Any:
        words = self.words.get(column)
        return value if words is None or value is None else Worded(value, words)

    def _generate_columns_and_selector(
        self, parsed_args: argparse.Namespace, column_names: Sequence[str]
    ) -> tuple[list[str], list[bool] | None]:
        for name in parsed_args.columns:
            self._column_named(name, column_names)
        return super()._generate_columns_and_selector(parsed_args, column_names)

    def _column_named(self, name: str, columns: Sequence[str]) -> str:
        """The key of the column that an operator means."""
        for column in columns:
            if self._normalize_column_name(column) == self._normalize_column_name(name):
                return column
        raise usage.Usage(f"there is no column {name!r}", f"one of {', '.join(columns)}")

    @staticmethod
    def _normalize_column_name(column_name: str) -> str:
        # Both the key `power_age_s` and the title `Power age (s)` name a column.
        return re.sub(r"[^a-z0-9]+", "_", column_name.lower()).strip("_")

    # Cliff would scan all installed packages for each of these three; none of it is used here.

    def _load_formatter_plugins(self) -> Any:
        return Formatters()

    def _load_hooks(self) -> None:
        self._hooks = []

    def get_epilog(self) -> str:
        return self._epilog or ""


class ListCommand(Command):
    """Asks `method` and lists what the answer holds under `key`."""

    columns: ClassVar[tuple[str, ...]]
    method: ClassVar[str]
    key: ClassVar[str]

    def columns_of(self, args: argparse.Namespace) -> Sequence[str]:
        return self.columns

    def filters(self, args: argparse.Namespace) -> Answer:
        """The arguments of the question."""
        return {}

    def take_action(self, parsed_args: argparse.Namespace) -> Rows:
        answer = self.app.client.ask(self.method, **self.filters(parsed_args))
        self.tell(answer)
        return self.rows(self.columns_of(parsed_args), answer.get(self.key, ()))


class ShowCommand(Command):
    """Asks `method` about one object; `columns` come first, then what else the answer holds."""

    columns: ClassVar[tuple[str, ...]] = ()
    method: ClassVar[str]
    noun: ClassVar[str]

    def columns_of(self, args: argparse.Namespace) -> Sequence[str]:
        return ()

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser = super().get_parser(prog_name)
        add_object(parser, self.noun)
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> Rows:
        asked = {self.noun: getattr(parsed_args, self.noun)}
        answer = self.app.client.ask(self.method, **asked)
        self.tell(answer)
        others = [key for key in answer if key not in self.columns and key != "notices"]
        return self.one([*self.columns, *others], answer)


class ChangeCommand(Command):
    """Asks `method` to change one object at once, and prints it: there is no job to follow."""

    columns: ClassVar[tuple[str, ...]]
    method: ClassVar[str]
    noun: ClassVar[str]
    needs_reason: ClassVar[bool] = False

    def columns_of(self, args: argparse.Namespace) -> Sequence[str]:
        return self.columns

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser = super().get_parser(prog_name)
        add_object(parser, self.noun)
        add_reason(parser, required=self.needs_reason)
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> Rows:
        asked = {self.noun: getattr(parsed_args, self.noun)}
        answer = self.app.client.ask(
            self.method, **asked, reason=parsed_args.reason, operator=operator()
        )
        return self.one(self.columns, answer)


class JobCommand(Command):
    """Ends with a job: prints it, and with `--wait` follows it first."""

    def columns_of(self, args: argparse.Namespace) -> Sequence[str]:
        return JOB_COLUMNS

    def job(self, job: Answer, wait: bool) -> Rows:
        """Print the job; one that did not succeed decides the exit code."""
        if wait:
            with self._progress() as progress:
                job = self._followed(job, progress)
        self.verdict = self.verdict or self.judge(job)
        return self.one(JOB_COLUMNS, job)

    def jobs(self, jobs: Sequence[Answer], wait: bool) -> Rows:
        """Print several jobs; each that did not succeed has its line, the last the exit code."""
        ended = list(jobs)
        if wait:
            with self._progress() as progress:
                for n, job in enumerate(jobs):
                    ended[n] = self._followed(job, progress)
        for job in ended:
            self.object_to(self.judge(job))
        return self.rows(JOB_COLUMNS, ended)

    def object_to(self, error: MusterError | None) -> None:
        """One more error of a command that goes on: the last is left to decide the exit code."""
        if error is not None:
            if self.verdict is not None:
                self.app.complain(self.verdict)
            self.verdict = error

    def _followed(self, job: Answer, progress: follow.Progress) -> Answer:
        client, runtime = self.app.client, self.app.runtime
        limit_s = self.app.settings.client.wait_timeout
        try:
            return follow.to_the_end(client, job, progress, runtime, limit_s)
        except follow.WaitTimeout as exc:
            self.object_to(exc)
            return exc.job
        except KeyboardInterrupt:
            uuid = job["uuid"]
            raise usage.Interrupted(
                f"job {uuid} goes on",
                f"muster job wait {uuid}; to take it back: muster job cancel {uuid}",
            ) from None

    def judge(self, job: Answer) -> MusterError | None:
        """Why a job that has ended is not what the command wanted; None when it is, or goes on."""
        return follow.failure(job)

    @contextlib.contextmanager
    def _progress(self) -> Iterator[follow.Progress]:
        progress = follow.Progress(self.app.stderr)
        try:
            yield progress
        finally:
            progress.end()


class ActionCommand(JobCommand):
    """A verb that an accepted job carries out; subclasses say what is asked in `wish`."""

    method: ClassVar[str]
    needs_reason: ClassVar[bool] = False

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser = super().get_parser(prog_name)
        add_reason(parser, required=self.needs_reason)
        parser.add_argument(
            "--wait", action="store_true", help="follow the job; exit 0 only when it succeeded"
        )
        parser.add_argument(
            "--job",
            metavar="UUID",
            type=usage.job_uuid,
            help="the job's uuid; repeats a request whose answer was lost",
        )
        return parser

    def wish(self, args: argparse.Namespace) -> Answer:
        """The arguments of the request, without the job and the operator."""
        raise NotImplementedError

    def ask(self, args: argparse.Namespace) -> Answer:
        """The manager's answer to the wish."""
        job, wish = args.job or self.app.runtime.new_id(), self.wish(args)
        try:
            return self.app.client.change(self.method, job, reason=args.reason, **wish)
        except KeyboardInterrupt:
            raise usage.Interrupted(
                f"job {job} may have been accepted", f"see: muster job show {job}"
            ) from None

    def take_action(self, parsed_args: argparse.Namespace) -> Rows:
        return self.job(self.ask(parsed_args), parsed_args.wait)


def add_object(parser: argparse.ArgumentParser, noun: str) -> None:
    """The VM, host, job, tombstone or clean-up item that a verb is about."""
    read, help_ = {
        "vm": (usage.said("vm"), "its name or UUID"),
        "host": (usage.said("host"), "its name"),
        "job": (usage.job_uuid, "its UUID"),
        "tombstone": (usage.uuid_of("tombstone"), "its UUID"),
        "cleanup": (usage.uuid_of("cleanup"), "its UUID"),
    }[noun]
    parser.add_argument(noun, metavar=noun.upper(), type=read, help=help_)


def add_reason(parser: argparse.ArgumentParser, required: bool = False) -> None:
    """`--reason TEXT`, which goes onto the trail of whatever is done."""
    parser.add_argument(
        "--reason",
        metavar="TEXT",
        type=usage.said("reason"),
        required=required,
        help="why; kept on the trail",
    )

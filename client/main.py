"""The `muster` command: finds the noun and verb, runs them, and says every error in one line."""

from __future__ import annotations

import argparse
import importlib.metadata
import logging
import os
import re
import sys
import traceback
from collections.abc import Sequence
from typing import Any, NoReturn, TextIO

from cliff.app import App
from cliff.commandmanager import CommandManager

from client.help import Help
from client.output import printable
from client.rpc import Client
from client.usage import Interrupted, Usage
from common import __version__, logs
from common.bus.base import Bus
from common.conf import Settings, load
from common.errors import EXIT_DONE, EXIT_FAILED, MusterError
from common.runtime import Runtime

NAMESPACE = "muster.commands"

# As the shell reports a process that the signal ended.
EXIT_BROKEN_PIPE = 141


class Commands(CommandManager):
    """The commands by the names of their entry points; only what runs is imported."""

    def load_commands(self, namespace: str) -> None:
        self.group_list.append(namespace)
        for point in importlib.metadata.entry_points(group=namespace):
            self.commands[point.name.replace("_", " ")] = point

    def find_command(self, argv: list[str]) -> tuple[Any, str, list[str]]:
        """The command that the first words name in full.

        Cliff also takes beginnings of words; one that means `reboot` today could mean `remove`
        with the next release.
        """
        words = argv[: self._get_last_possible_command_index(argv)]
        for length in range(len(words), 0, -1):
            name = " ".join(words[:length])
            if name in self.commands:
                return self.commands[name].load(), name, argv[length:]
        verbs = self.verbs(words[0]) if words else []
        if verbs and len(words) == 1:
            raise Usage(f"{words[0]} needs a verb", f"one of {', '.join(verbs)}")
        if verbs:
            raise Usage(
                f"{' '.join(words[:2])!r} is not a muster command", f"one of {', '.join(verbs)}"
            )
        raise Usage(f"{(words or argv)[0]!r} is not a muster command", "see: muster --help")

    def verbs(self, noun: str) -> list[str]:
        """The verbs of a noun."""
        return sorted(name.split()[1] for name in self.commands if name.startswith(f"{noun} "))


class Muster(App):
    """One run of the command; `bus` and `settings` are given when it runs inside another process.

    Commands use `client`, `settings`, `runtime`, `stdout` and `stderr`.
    """

    NAME = "muster"

    def __init__(
        self,
        bus: Bus | None = None,
        settings: Settings | None = None,
        stdout: TextIO | None = None,
        stderr: TextIO | None = None,
        runtime: Runtime | None = None,
    ) -> None:
        super().__init__(
            "Runs virtual machines on a fleet of hypervisors.",
            __version__,
            Commands(NAMESPACE),
            stdout=stdout,
            stderr=stderr,
        )
        self.command_manager.add_command("help", Help)
        self.embedded = bus is not None
        self.runtime = runtime or Runtime(self.NAME)
        self._bus = bus
        self._settings = settings
        self._client: Client | None = None

    @property
    def settings(self) -> Settings:
        """The configuration, read when it is first needed: help must work without any."""
        if self._settings is None:
            named = os.environ.get("MUSTER_CONFIG")
            files = self.options.config_file or ([named] if named else [])
            self._settings = load(self.NAME, [f"--config-file={name}" for name in files])
        return self._settings

    @property
    def client(self) -> Client:
        """The door to the managers."""
        if self._client is None:
            self._client = Client(self._connected, self.settings, self.runtime)
        return self._client

    def _connected(self) -> Bus:
        if self._bus is None:
            # Half a second of imports that only a command with a question needs.
            from common.bus import rabbit

            self._bus = rabbit.connect(self.settings, self.runtime, "client")
        return self._bus

    def build_option_parser(
        self,
        description: str | None,
        version: str | None,
        argparse_kwargs: dict[str, Any] | None = None,
    ) -> argparse.ArgumentParser:
        # An abbreviated option would be taken from the arguments of the verb.
        parser = argparse.ArgumentParser(
            prog=self.NAME,
            usage="muster [--config-file FILE] NOUN VERB [ARGS]",
            description=description,
            add_help=False,
            allow_abbrev=False,
        )
        parser.add_argument("--version", action="version", version=f"{self.NAME} {version}")
        parser.add_argument(
            "--config-file",
            metavar="FILE",
            action="append",
            help="the configuration; MUSTER_CONFIG names it too",
        )
        parser.add_argument(
            "-v", "--verbose", action="store_true", help="log to standard error what is done"
        )
        parser.add_argument(
            "--debug", action="store_true", help="log everything, and errors with their traceback"
        )
        parser.add_argument("-h", "--help", action="store_true", help="show help and exit")
        return parser

    def configure_logging(self) -> None:
        if self.embedded:
            return  # the log belongs to the process around us
        if self.options.debug or self.options.verbose:
            logs.setup("DEBUG" if self.options.debug else "INFO", as_json=False)
        else:
            # The libraries' warnings of a lost broker would come beside our one line.
            logging.getLogger().addHandler(logging.NullHandler())

    def run(self, argv: list[str]) -> int:
        """Run one command line; returns the exit code of the contract."""
        debug = "--debug" in argv
        try:
            _raise_usage(self.parser, self.NAME)
            _require_text(argv)
            self.options, words = self.parser.parse_known_args(argv)
            self.configure_logging()
            return self.run_subcommand(words)
        except SystemExit as exc:  # `--version` ends so
            return exc.code if isinstance(exc.code, int) else EXIT_DONE
        except MusterError as exc:
            return self._fail(exc, debug)
        except BrokenPipeError:
            return EXIT_BROKEN_PIPE
        except KeyboardInterrupt:
            return self._fail(Interrupted("what a manager was asked may have been done"), debug)
        except Exception as exc:  # noqa: BLE001 - an operator gets one line, never a traceback
            error = MusterError(f"{type(exc).__name__}: {exc}", "see more with --debug")
            return self._fail(error, debug)
        finally:
            if self._bus is not None and not self.embedded:
                self._bus.close()

    def run_subcommand(self, argv: list[str]) -> int:
        """Cliff's, without its own ideas of exit codes and error lines."""
        manager = self.command_manager
        if self.options.help or not argv:
            argv = ["help", *argv[: manager._get_last_possible_command_index(argv)]]
        factory: Any
        factory, name, rest = manager.find_command(argv)
        command = factory(self, self.options, cmd_name=name)
        parser = command.get_parser(f"{self.NAME} {name}")
        _raise_usage(parser, f"{self.NAME} {name}")
        return int(command.run(parser.parse_args(rest)) or EXIT_DONE)

    def _fail(self, error: MusterError, debug: bool) -> int:
        if debug:
            traceback.print_exc(file=self.stderr)
        self.complain(error)
        return error.exit_code or EXIT_FAILED

    def complain(self, error: MusterError) -> None:
        """A line on standard error for each thing that is wrong: what it is, and what to do."""
        several = error.data.get("errors") or ()
        if len(several) < 2:
            self._complain(error.code, f"{error.message}{_candidates(error)}", error.remedy)
        for each in several if len(several) > 1 else ():
            message = f"{each.get('field')}: {each.get('message')}"
            self._complain(error.code, message, each.get("remedy", ""))

    def _complain(self, code: str, message: str, remedy: str) -> None:
        line = f"{self.NAME}: {code}: {message}{f' ({remedy})' if remedy else ''}"
        self.stderr.write(f"{printable(' '.join(line.split()))}\n")


def _require_text(argv: list[str]) -> None:
    """Refuse arguments that are no text in the operator's locale: no message could carry them."""
    for word in argv:
        try:
            word.encode()
        except UnicodeEncodeError:
            shown = word.encode(errors="surrogateescape").decode(errors="backslashreplace")
            raise Usage(f"'{shown}' is no UTF-8 text", "type it again") from None


def _raise_usage(parser: argparse.ArgumentParser, prog: str) -> None:
    """Let a parser raise what is wrong with the arguments rather than print it and exit."""

    def error(message: str) -> NoReturn:
        raise Usage(message, f"see: {prog} --help")

    parser.error = error  # type: ignore[method-assign]


def _candidates(error: MusterError) -> str:
    """What an ambiguous name may mean, unless the message has said it."""
    names = [
        " ".join(str(part) for part in each.values()) if isinstance(each, dict) else str(each)
        for each in error.data.get("candidates", ())
    ]
    unsaid = [name for name in names if not re.search(rf"\b{re.escape(name)}\b", error.message)]
    return f": {', '.join(unsaid)}" if unsaid else ""


def run(
    argv: Sequence[str],
    *,
    bus: Bus,
    settings: Settings,
    stdout: TextIO,
    stderr: TextIO,
    runtime: Runtime | None = None,
) -> int:
    """`muster ARGV` inside this process, over a bus that stays the caller's; the exit code."""
    return Muster(bus, settings, stdout, stderr, runtime).run(list(argv))


def main(argv: Sequence[str] | None = None) -> int:
    """The console script."""
    # Cron jobs close them; what would be printed there goes nowhere.
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 - it ends with the process
    code = Muster().run(list(sys.argv[1:] if argv is None else argv))
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader has gone; without this the interpreter complains once more at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_BROKEN_PIPE
    return code

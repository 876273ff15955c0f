"""`muster help`: the commands by noun and verb, and each one's arguments."""

from __future__ import annotations

import argparse

from cliff.help import HelpCommand


class Help(HelpCommand):
    """Say what there is, or how one command is used"""

    def take_action(self, parsed_args: argparse.Namespace) -> int:
        manager = self.app.command_manager
        words = parsed_args.cmd
        verbs = sorted(name for name, _ in manager if [name.split()[0]] == words)
        if not words:
            self.app.parser.print_help(self.app.stdout)
            self.app.stdout.write("\nCommands (muster help NOUN VERB tells more):\n")
            self._list(sorted(name for name, _ in manager))
        elif verbs and verbs != words:
            self._list(verbs)
        else:
            manager.find_command(words)  # raises, where cliff's own help would guess
            super().take_action(parsed_args)
        return 0

    def _list(self, names: list[str]) -> None:
        width = max(len(name) for name in names)
        for name in names:
            try:
                factory = self.app.command_manager.find_command(name.split())[0]
                summary = (factory.__doc__ or "").partition("\n")[0]
            except ImportError as exc:  # one command's missing library must not hide the others
                summary = f"(can not be used here: {exc})"
            self.app.stdout.write(f"  {name:<{width}}  {summary}\n")

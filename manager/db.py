"""`muster db`: the schema. It speaks to the database itself, since no manager can run without."""

from __future__ import annotations

import argparse
from typing import Any

from cliff.command import Command

from common.runtime import Runtime
from manager.store import migrate
from manager.store.engine import Store


class Upgrade(Command):
    """Bring the database's schema up to date."""

    def take_action(self, _parsed: argparse.Namespace) -> int:
        app: Any = self.app
        store = Store(app.settings.database, Runtime("db"))
        try:
            before, after = migrate.upgrade(store)
        finally:
            store.close()
        if before == after:
            app.stdout.write(f"the schema is up to date ({after})\n")
        else:
            app.stdout.write(f"the schema went from {before or 'nothing'} to {after}\n")
        return 0

"""An agent's hello, by RPC."""

from __future__ import annotations

from typing import Any

from common import logs
from common.conf import Settings
from common.errors import BadMessage, DbRolledBack
from common.messages import Hello, builtins, convert
from manager.flows import hello as flow
from manager.flows import restore
from manager.store.engine import Store


def hello(store: Store, cfg: Settings, kwargs: dict[str, Any]) -> Any:
    """The Welcome for an agent, as plain data."""
    if set(kwargs) != {"hello"}:
        raise BadMessage("hello: exactly one argument, `hello`, is expected", "upgrade the agent")
    message = convert(kwargs["hello"], Hello)
    with logs.about(host=message.host):
        try:
            return builtins(store.run(flow.welcome, cfg, message))
        except DbRolledBack:
            store.run(restore.note, message)
            raise

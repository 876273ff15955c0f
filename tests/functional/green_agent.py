"""An agent's use of the bus on eventlet's green threads, as a process of its own."""

from common.runtime import EVENTLET, make, prepare

if __name__ == "__main__":
    prepare(EVENTLET)

import json
import os
import sys
from typing import Any

from common.bus import rabbit
from common.bus.base import ANY_MANAGER, agent_at
from common.errors import NoManager
from tests.functional.busfleet import settings


def main() -> int:
    runtime = make(EVENTLET, "green")
    bus = rabbit.connect(settings(os.environ["URL"]), runtime, "agent")
    word = os.environ["WORD"]
    over = runtime.event()

    def endpoint(method: str, kwargs: dict[str, Any]) -> Any:
        if method == "quit":
            over.set()
        return {"method": method, **kwargs}

    handle = bus.serve(agent_at(os.environ["HOST"]), endpoint)
    hello: Any = None
    while hello is None:
        try:
            hello = bus.call(ANY_MANAGER, "hello", {"hello_id": "h1"}, 5.0)
        except NoManager:
            runtime.sleep(0.1)
    runtime.every("report", 0.2, lambda: bus.publish(f"heartbeat.{word}.h", b'{"seq": 1}', 5.0))
    runtime.every(
        "result", 0.2, lambda: bus.publish(f"result.{word}.h", json.dumps(hello).encode())
    )
    runtime.wait(over, 60)
    handle.stop()
    late = runtime.stop()
    bus.close()
    return 1 if late or not over.is_set() else 0


if __name__ == "__main__":
    sys.exit(main())

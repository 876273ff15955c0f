"""A bus under test: the same handful of controls over the memory adapter and RabbitMQ."""

from __future__ import annotations

import contextlib
import uuid
from typing import Any, Protocol

import kombu

from common.bus import rabbit as rabbit_bus
from common.bus.base import Bus
from common.bus.memory import Broker
from common.conf import Settings
from common.conf.default import Default
from common.runtime import Runtime
from devstack.parts.rabbitmq import RabbitMQ


class MovableRuntime(Runtime):
    """Real threads under a monotonic clock that a test can move forward."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.ahead = 0.0

    def monotonic(self) -> float:
        return super().monotonic() + self.ahead


class Fleet(Protocol):
    """Buses of one broker, and the switch of that broker."""

    runtime: MovableRuntime

    def bus(self, role: str) -> Bus: ...

    def down(self) -> None: ...

    def up(self) -> None: ...

    def dead(self, key: str) -> tuple[bytes, str] | None:
        """Body and reason of the dead letter of a routing key."""

    def close(self) -> None: ...


def unique(name: str) -> str:
    """A name that no other test on this broker uses."""
    return f"{name}{uuid.uuid4().hex[:8]}"


def settings(url: str) -> Settings:
    return Settings(default=Default(transport_url=url, host="test"))


class MemoryFleet:
    def __init__(self) -> None:
        self.runtime = MovableRuntime("test")
        self._broker = Broker(self.runtime)

    def bus(self, role: str) -> Bus:
        return self._broker.bus(self.runtime, role)

    def down(self) -> None:
        self._broker.up = False

    def up(self) -> None:
        self._broker.up = True

    def dead(self, key: str) -> tuple[bytes, str] | None:
        found = [(body, reason) for k, body, reason in self._broker.dead if k == key]
        return found[0] if found else None

    def close(self) -> None:
        self.runtime.stop()


class RabbitFleet:
    def __init__(self, part: RabbitMQ, url: str) -> None:
        self.runtime = MovableRuntime("test")
        self._part = part
        self._url = url
        self._buses: list[Bus] = []

    def bus(self, role: str) -> Bus:
        made = rabbit_bus.connect(settings(self._url), self.runtime, role)
        self._buses.append(made)
        return made

    def down(self) -> None:
        self._part.kill()

    def up(self) -> None:
        self._part.start()

    def dead(self, key: str) -> tuple[bytes, str] | None:
        with raw(self._url) as connection:
            letter: Any = connection.default_channel.basic_get("muster.dead", no_ack=True)
        if letter is None or letter.headers["x-muster-key"] != key:
            return None
        body = letter.body if isinstance(letter.body, bytes) else letter.body.encode()
        return body, letter.headers["x-muster-reason"]

    def close(self) -> None:
        self._part.thaw()
        self._part.start()
        for bus in self._buses:
            bus.close()
        self.runtime.stop()


def raw(url: str) -> contextlib.AbstractContextManager[Any]:
    """A plain kombu connection to the broker of a transport_url, with publisher confirms."""
    return contextlib.closing(
        kombu.Connection(
            url.replace("rabbit://", "amqp://"), transport_options={"confirm_publish": True}
        )
    )

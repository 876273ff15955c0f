"""A private RabbitMQ: its own node name, ports, epmd and data folder, on loopback."""

from __future__ import annotations

import os
import pathlib
import shutil
import signal
import uuid
from collections.abc import Sequence

from devstack.parts.base import (
    Part,
    PartError,
    Process,
    answers,
    as_user,
    find_binary,
    free_port,
    give_to,
    run,
)

PACKAGE = "rabbitmq-server"
USER = "rabbitmq"
# The scripts themselves: the wrappers in /usr/sbin go through su and lose the environment.
PLACES = ("/usr/lib/rabbitmq/bin",)


class RabbitMQ(Part):
    """A broker with the user guest:guest; `url` is an oslo.messaging transport_url."""

    name = "rabbitmq"

    def __init__(self, folder: pathlib.Path | None = None, *, also_at: Sequence[str] = ()) -> None:
        """`also_at`: more addresses to listen at, for hosts in network namespaces of this run."""
        super().__init__(folder)
        self.port = free_port()
        self._also_at = tuple(also_at)
        self._dist_port = free_port()
        self._epmd_port = free_port()
        self._node = f"muster-{uuid.uuid4().hex[:8]}@localhost"
        self._epmd: Process | None = None

    @property
    def url(self) -> str:
        return f"rabbit://guest:guest@127.0.0.1:{self.port}/"

    def url_as(self, user: str, password: str) -> str:
        """The transport_url for another user."""
        return f"rabbit://{user}:{password}@127.0.0.1:{self.port}/"

    def new_vhost(self) -> str:
        """The transport_url of a fresh virtual host, where one fleet meets no other."""
        name = f"fleet-{uuid.uuid4().hex[:8]}"
        self._add_vhost(name)
        return f"{self.url}{name}"

    def prepare(self) -> None:
        give_to(USER, self._data, self._home)
        config = self.folder / "rabbitmq.conf"
        more = [
            f"listeners.tcp.{n} = {address}:{self.port}\n"
            for n, address in enumerate(self._also_at, start=2)
        ]
        if more:
            # Else the user guest is let in from the loopback interface only.
            more.append("loopback_users = none\n")
        config.write_text(
            f"listeners.tcp.1 = 127.0.0.1:{self.port}\n"
            # A test machine's disk is nobody's concern here.
            "disk_free_limit.absolute = 10MB\n"
            "vm_memory_high_watermark.relative = 0.6\n"
            "log.console = true\n"
            "log.console.level = warning\n"
            "log.file = false\n"
            "queue_index_embed_msgs_below = 4096\n" + "".join(more)
        )
        plugins = self.folder / "enabled_plugins"
        plugins.write_text("[].\n")
        for file in (config, plugins):
            file.chmod(0o644)
        if self._epmd is None or not self._epmd.running():
            # Our own name server: the machine's must not know of us, nor hold us by its lifetime.
            self._epmd = Process(
                [
                    find_binary("epmd", "erlang-base"),
                    "-port",
                    str(self._epmd_port),
                    "-address",
                    "127.0.0.1",
                ],
                os.environ,
                self.folder / "epmd.log",
            )

    def command(self) -> tuple[list[str], dict[str, str]]:
        return [*self._as_user, self._binary("rabbitmq-server")], self._environment()

    def ready(self) -> bool:
        # The listener opens last.
        return answers(self.port)

    def add_user(
        self, user: str, password: str, configure: str = ".*", write: str = ".*", read: str = ".*"
    ) -> None:
        """A broker user with permissions on the default virtual host."""
        self.control("add_user", user, password)
        self.control("set_permissions", user, configure, write, read)

    def control(self, *args: str) -> str:
        """The output of rabbitmqctl."""
        return run(
            [*self._as_user, self._binary("rabbitmqctl"), "-q", "-n", self._node, *args],
            self._environment(),
        )

    def lose_data(self) -> None:
        """Forget every queue and exchange: the next start is that of a new broker."""
        if self.process is not None:
            raise PartError("rabbitmq: kill it before its data goes")
        shutil.rmtree(self._data)

    def evaluate(self, expressions: str) -> str:
        """What Erlang expressions come to in the broker.

        As rabbitmqctl eval, without the seconds in which its own Erlang machine starts twice.
        """
        cookie = (self._home / ".erlang.cookie").read_text().strip()
        at = ["-address", f"127.0.0.1:{self._dist_port}", "-timeout", "60", "-c", cookie]
        said = run([find_binary("erl_call", "erlang-base"), *at, "-e"], given=f"{expressions}.\n")
        if not said.startswith("{ok, "):
            raise PartError(f"rabbitmq: {expressions}: {said}")
        return said.removeprefix("{ok, ").removesuffix("}")

    def _add_vhost(self, name: str) -> None:
        self.evaluate(
            f'ok = rabbit_vhost:add(<<"{name}">>, <<"muster">>),'
            f' ok = rabbit_auth_backend_internal:set_permissions(<<"guest">>, <<"{name}">>,'
            ' <<".*">>, <<".*">>, <<".*">>, <<"muster">>)'
        )

    def clean_up(self) -> None:
        if self._epmd is not None:
            self._epmd.end(signal.SIGTERM, 5.0)
            self._epmd = None

    @property
    def _data(self) -> pathlib.Path:
        return self.folder / "data"

    @property
    def _home(self) -> pathlib.Path:
        return self.folder / "home"

    @property
    def _as_user(self) -> list[str]:
        return as_user(USER)

    def _binary(self, name: str) -> str:
        return find_binary(name, PACKAGE, *PLACES)

    def _environment(self) -> dict[str, str]:
        return {
            **self._listener(),
            "PATH": os.environ.get("PATH", "/usr/sbin:/usr/bin:/sbin:/bin"),
            "LANG": "C.UTF-8",
            # The cookie is made in HOME: a fresh one here, so no other node can join.
            "HOME": str(self._home),
            "ERL_EPMD_PORT": str(self._epmd_port),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODENAME": self._node,
            "RABBITMQ_DIST_PORT": str(self._dist_port),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": (
                "-kernel inet_dist_use_interface {127,0,0,1} +sbwt none +sbwtdcpu none"
                " +sbwtdio none"
            ),
            "RABBITMQ_MNESIA_BASE": str(self._data),
            "RABBITMQ_LOG_BASE": str(self._data),
            "RABBITMQ_CONFIG_FILE": str(self.folder / "rabbitmq.conf"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(self.folder / "enabled_plugins"),
            "RABBITMQ_CONF_ENV_FILE": str(self.folder / "no-such-env-file"),
            # Makes the script become the Erlang machine, so that our pid is the broker's.
            "RUNNING_UNDER_SYSTEMD": "true",
        }

    def _listener(self) -> dict[str, str]:
        if self._also_at:
            return {}  # it would overrule the listeners of the configuration file
        return {"RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1", "RABBITMQ_NODE_PORT": str(self.port)}

"""What the invariants ask of the database; built once, as that takes longer than asking."""

from __future__ import annotations

from common.states import CommandState, TombstoneState
from manager.flows import commands, jobs
from manager.store.addresses import Mac
from manager.store.cleanups import Cleanup, CleanupState
from manager.store.commands import CommandRow, Void
from manager.store.hosts import Host
from manager.store.instances import Instance
from manager.store.jobs import Job
from manager.store.rollbacks import Rollback
from manager.store.sightings import Sighting
from manager.store.statements import Query, among, ask
from manager.store.tombstones import Tombstone

C, J, S, T = (kind.__table__.c for kind in (CommandRow, Job, Sighting, Tombstone))

# after a step
COMMAND_OF = Query(
    CommandRow,
    C.instance == ask("instance"),
    C.generation == ask("generation"),
    C.host == ask("host"),
)
STONE_OF = Query(Tombstone, T.host == ask("host"), T.instance == ask("instance"))
TERMINATED = Query(
    CommandRow,
    C.instance == ask("instance"),
    C.host == ask("host"),
    C.kind == "terminate_instance",
    C.state == CommandState.SUCCEEDED,
)
OPEN_DELETES = Query(Job, J.kind == "delete", among(J.state, jobs.OPEN), J.same_as.is_(None))
OPEN_STONES_AT = Query(Tombstone, T.host == ask("host"), T.state == TombstoneState.OPEN)

# at the end
WISHES = Query(Job, J.same_as.is_(None))
OPEN_COMMANDS = Query(CommandRow, among(C.state, commands.OPEN))
STALE_COMMANDS = Query(CommandRow, C.error_code == "STALE_COMMAND")
NEWER = Query(CommandRow, C.instance == ask("instance"), C.generation > ask("generation"), limit=1)
INSTANCES = Query(Instance)
OPEN_STONES = Query(Tombstone, T.state == TombstoneState.OPEN)
HOSTS = Query(Host)
VOIDS = Query(Void)
ROLLBACKS = Query(Rollback)
MACS = Query(Mac)
CLEANUPS = Query(Cleanup, Cleanup.__table__.c.state == CleanupState.OPEN)
SIGHTINGS = Query(Sighting, S.present)

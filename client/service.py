"""`muster service ...`: the managers and agents of the fleet."""

from __future__ import annotations

from client.base import ListCommand


class List(ListCommand):
    """List the managers, with what they hear, and the agents"""

    method = "service_list"
    key = "services"
    columns = ("service", "id", "host", "state", "version", "started_at", "heard_since", "blind")

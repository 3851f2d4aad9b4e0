"""Action: fence a primary, promote its standby, and say what that cost the customers.

Returns fence_ms, promote_ms, rto_ms (the longest time without an acknowledged write around it, or
None where no customer was writing), acknowledged and lost (RPO), and a line for people.
"""

from __future__ import annotations

from typing import Any, ClassVar

from workload.actions import LabAction
from workload.nodes.pair import PAIR, members
from workload.operations.failover import fail_over


class ActionModule(LabAction):
    """The action."""

    ARGUMENTS: ClassVar[dict[str, Any]] = PAIR

    def act(self, arguments: dict[str, Any], dry_run: bool) -> dict[str, Any]:
        """Fail over."""
        lab, primary, standby = members(arguments)
        return fail_over(lab, primary, standby, arguments["password"], dry_run)

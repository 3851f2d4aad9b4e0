"""Action: one PostgreSQL server process without Docker.

Runs initdb once, writes the configuration beside the data directory, and starts the server where
it is not running or its configuration changed, which the server has to accept before it is stopped
for it. A killed run leaves nothing half-made. Returns
created (initdb ran) and started.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from workload.actions import LabAction
from workload.nodes import identity
from workload.nodes.embedded import EmbeddedServer
from workload.nodes.settings import merged


class ActionModule(LabAction):
    """The action."""

    ARGUMENTS: ClassVar[dict[str, Any]] = {
        # The node's folder.
        "base": {"type": "path", "required": True},
        # Folder with postgres and initdb.
        "bin_dir": {"type": "path", "required": True},
        "port": {"type": "int", "required": True},
        # The superuser's, at initdb.
        "password": {"type": "str", "required": True, "no_log": True},
        # A person's own, over the lab's.
        "settings": {"type": "dict", "default": {}},
        "state": {"type": "str", "choices": ["started", "stopped"], "default": "started"},
        "timeout_s": {"type": "int", "default": 60},
    }

    def act(self, arguments: dict[str, Any], dry_run: bool) -> dict[str, Any]:
        """Start or stop the server."""
        server = EmbeddedServer(
            Path(arguments["base"]).absolute(),
            port=arguments["port"],
            bin_dir=Path(arguments["bin_dir"]),
            settings=merged(arguments["settings"]),
        )
        if arguments["state"] == "stopped":
            return {"changed": bool(server.processes()) if dry_run else server.stop()}
        if dry_run:
            created = not server.exists()
            started = created or not server.is_configured() or server.postmaster() is None
        else:
            with server.locked() as lock:
                created = server.initialise(arguments["password"], lock)
                if not server.is_configured():
                    server.validate()
                    server.configure()
                    server.stop()
                started = server.start(arguments["timeout_s"])
            identity.record(server.base.parent.parent, server.base.name, server.identity())
        return {"changed": created or started, "created": created, "started": started}

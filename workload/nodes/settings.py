"""What a node's server is started with: the lab's settings, and a person's own over them.

All that a later phase would need a restart for is here on day one, since then there are customers
on the node. wal_level logical costs a few per cent of WAL; slots and workers a little memory.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

SETTINGS: dict[str, Any] = {
    "max_connections": 400,
    "shared_buffers": "128MB",
    "wal_level": "logical",
    "max_wal_senders": 20,
    "max_replication_slots": 20,
    "max_logical_replication_workers": 16,
    "max_sync_workers_per_subscription": 4,
    "max_worker_processes": 32,
    "max_prepared_transactions": 64,
    # A slot whose reader is gone must not fill the disk.
    "max_slot_wal_keep_size": "4GB",
    "wal_log_hints": "on",
    # Recycled segments keep rows of other regions under a future name.
    "wal_recycle": "off",
    "wal_init_zero": "off",
    # Statements, parameters and error details hold customers' data; a log must not.
    "log_min_duration_statement": -1,
    "log_parameter_max_length": 0,
    "log_parameter_max_length_on_error": 0,
    "log_min_error_statement": "panic",
    # An error's own words too: invalid input syntax for type uuid: "an@email". log leaves out
    # errors and warnings, and keeps what the server says of itself.
    "log_min_messages": "log",
    "log_error_verbosity": "terse",
}

_PLACE = "the lab decides where a node stands and is reached"
_TLS = "the lab gives each region its certificate"
_PAIR = "the lab decides who follows whom"
_LOG = "the lab and its audit read the server's log where it is"
_LIBRARIES = "every login would need them, the lab's own too"
#: Settings that are not a person's to set, with the reason.
TAKEN = {
    **dict.fromkeys(
        ("data_directory", "config_file", "external_pid_file", "listen_addresses", "port"), _PLACE
    ),
    **dict.fromkeys(
        ("unix_socket_directories", "include", "include_dir", "include_if_exists"), _PLACE
    ),
    **dict.fromkeys(("hba_file", "ident_file"), "the lab decides who may log in"),
    **dict.fromkeys(("ssl", "ssl_cert_file", "ssl_key_file", "ssl_ca_file", "ssl_crl_file"), _TLS),
    **dict.fromkeys(
        ("primary_conninfo", "primary_slot_name", "synchronous_standby_names", "restore_command"),
        _PAIR,
    ),
    **dict.fromkeys(
        ("logging_collector", "log_destination", "log_directory", "log_filename"), _LOG
    ),
    **dict.fromkeys(("session_preload_libraries", "local_preload_libraries"), _LIBRARIES),
    "session_replication_role": "the lab's triggers would not fire",
    "search_path": "the application's old names are looked up by it",
}
_NEEDED = "logical replication and prepared transactions of later phases need as many"
#: The least that the lab can do with.
LEAST = {
    name: SETTINGS[name]
    for name in (
        "max_wal_senders",
        "max_replication_slots",
        "max_logical_replication_workers",
        "max_worker_processes",
        "max_prepared_transactions",
    )
}
_QUIET_LOG = "error messages hold customers' data, and a log must not"
#: Settings with the only values that do, and the reason.
ONLY: dict[str, tuple[tuple[str, ...], str]] = {
    "wal_level": (("logical",), "the phases from shard on replicate logically"),
    "wal_recycle": (("off",), "recycled segments keep rows of other regions"),
    "full_page_writes": (("on",), "pg_rewind needs it"),
    "hot_standby": (("on",), "customers read from standbys"),
    "synchronous_commit": (
        ("on", "remote_apply"),
        "a failover would lose acknowledged writes",
    ),
    "password_encryption": (("scram-sha-256",), "all logins are by SCRAM"),
    "log_parameter_max_length": (("0",), _QUIET_LOG),
    "log_parameter_max_length_on_error": (("0",), _QUIET_LOG),
    "log_min_error_statement": (("panic",), _QUIET_LOG),
    "log_min_messages": (("log", "fatal", "panic"), _QUIET_LOG),
    "log_error_verbosity": (("terse",), _QUIET_LOG),
}
NAME = re.compile(r"[a-z_][a-z0-9_$]*(\.[a-z_][a-z0-9_$]*)?")


def merged(own: Mapping[str, Any]) -> dict[str, str]:
    """Return the lab's settings with a person's own over them, all as text."""
    texts = {_name(name): _text(value) for name, value in own.items()}
    return {**{name: _text(value) for name, value in SETTINGS.items()}, **texts}


def arguments(own: Mapping[str, Any]) -> list[str]:
    """Return the merged settings as arguments of postgres: -c name=value."""
    return [part for name, value in merged(own).items() for part in ("-c", f"{name}={value}")]


def problems(hosts: Iterable[Mapping[str, Any]]) -> list[str]:
    """Name the settings of nodes that the lab cannot do with, each with the reason.

    hosts: variables of hosts, of which node_settings is read. What the server itself refuses, it
    is asked for before it is stopped.
    """
    lines = []
    for host in hosts:
        where = f"node '{host['inventory_hostname']}' has node_settings"
        own = host.get("node_settings") or {}
        if not isinstance(own, Mapping):
            lines.append(f"{where} {own!r}: give settings by name, {{log_statement: all}}")
            continue
        for given, value in own.items():
            name, text = _name(given), _text(value)
            if not NAME.fullmatch(name):
                lines.append(f"{where} '{given}': that is no name of a setting")
            elif name in TAKEN:
                lines.append(f"{where} {name}, which is not yours to set: {TAKEN[name]}")
            elif name in ONLY and text.lower() not in ONLY[name][0]:
                values, why = ONLY[name]
                lines.append(f"{where} {name} = '{text}': use {' or '.join(values)}; {why}")
            elif name in LEAST and text.isdigit() and int(text) < LEAST[name]:
                lines.append(f"{where} {name} = {text}: use {LEAST[name]} or more; {_NEEDED}")
    return lines


def _name(name: object) -> str:
    # As the server reads one: in any case, and with dashes on a command line.
    return str(name).lower().replace("-", "_")


def _text(value: object) -> str:
    return {True: "on", False: "off"}[value] if isinstance(value, bool) else str(value)

"""Nodes: PostgreSQL servers in either runtime, their files, standbys, TLS; preflight and teardown.

Imports the core and the WAN.
"""

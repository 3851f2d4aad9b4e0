"""Sharding: partitions, online copies and rewrites, replicas, foreign access, cutover and purge.

Imports the core, the WAN and the nodes.
"""

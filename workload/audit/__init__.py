"""The residency audit: where each region's data is, on each node, by SQL and in the raw files.

Imports the core, the WAN and the nodes.
"""

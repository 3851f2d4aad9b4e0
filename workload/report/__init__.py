"""Reports: report files, what customers felt and why, and both renderings of it.

Imports the core, the WAN, the nodes, sharding and the audit.
"""

"""The geo-sharding lab: the engine that shards, the customers who trade, the proofs and reports.

The modules here are the core, on which all rooms stand; docs/architecture.md is the map.
"""

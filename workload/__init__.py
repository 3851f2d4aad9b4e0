"""The geo-sharding lab's Python side: servers, populations, verification, reports."""

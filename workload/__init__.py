"""The geo-sharding lab's Python side: servers without Docker, populations, verification, reports."""

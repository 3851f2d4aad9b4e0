"""The residency audit: where each region's data is, on each node, by SQL and in the raw files."""

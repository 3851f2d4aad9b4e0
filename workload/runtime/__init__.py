"""The two ways to run a node: a container, or a server process from a wheel."""

"""make status: ask every node, say what is wrong and what to do about it, and print it."""

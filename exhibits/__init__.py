"""Faults that nobody may try on real data: real servers show them on throw-away data."""

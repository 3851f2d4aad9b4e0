"""Measurements with their goals: python -m bench, behind make bench."""

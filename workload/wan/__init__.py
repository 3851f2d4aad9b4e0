"""The emulated WAN: a relay process that delays, cuts and heals what crosses between regions.

Imports the core.
"""

"""Operations: failover, one customer, status, psql, the WAN's front, the demo.

Imports the core and every other room.
"""

"""Proof: the ledger held against the database, nodes compared, the source document's tests.

Imports the core and every room up to traffic.
"""

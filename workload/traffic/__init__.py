"""Traffic: customers, what they say and its ledger, the Locust file, and rows in bulk.

Imports the core and every room up to report.
"""

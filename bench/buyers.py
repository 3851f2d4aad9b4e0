"""Locust file of a bench: customers who do nothing but buy."""

from __future__ import annotations

from workload.customers import Customer
from workload.locustfiles import populations
from workload.locustfiles.populations import *  # noqa: F403  (its listeners and options)


class Buyer(next(iter(populations._classes().values()))):  # type: ignore[misc]
    """Signs up, then only buys."""

    look = Customer.buy

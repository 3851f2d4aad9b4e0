"""Locust file of a bench: customers that only buy."""

from __future__ import annotations

from workload.traffic import locustfile
from workload.traffic.customer import Customer
from workload.traffic.locustfile import *  # noqa: F403


class Buyer(next(iter(locustfile._classes().values()))):  # type: ignore[misc]
    """Signs up, then only buys."""

    read = Customer.buy

"""The geo-sharding lab: the engine that shards, the customers who trade, the proofs and reports.

The modules here are the core, on which all rooms stand; docs/architecture.md is the map.
"""

import os
import re

# A person's libpq variables (PGSSLMODE, PGOPTIONS, PGHOSTADDR, PGSERVICE, ...) are for their own
# databases. Whatever imports this package, and every process that it starts, connects by what the
# lab says alone.
for _name in [name for name in os.environ if re.fullmatch(r"PG[A-Z]+", name)]:
    del os.environ[_name]

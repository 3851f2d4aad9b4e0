-- Every database of a node that takes connections.
SELECT datname FROM pg_database WHERE datallowconn ORDER BY datname;

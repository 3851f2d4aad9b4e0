-- The subscriptions of this database: whether each has a worker now, and errors so far.
SELECT s.subname, s.subenabled, bool_or(w.pid IS NOT NULL), max(e.apply_error_count)::bigint
FROM pg_subscription s
LEFT JOIN pg_stat_subscription w ON w.subid = s.oid AND w.relid IS NULL
LEFT JOIN pg_stat_subscription_stats e ON e.subid = s.oid
WHERE s.subdbid = (SELECT oid FROM pg_database WHERE datname = current_database())
GROUP BY 1, 2

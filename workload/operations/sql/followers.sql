-- On a node that takes writes: each slot, the follower that reads it, and its lag.
-- kept_bytes is the WAL that the server keeps for the slot.
SELECT s.slot_name, s.slot_type, s.active, coalesce(r.state, ''), coalesce(r.sync_state, ''),
  coalesce(pg_wal_lsn_diff(pg_current_wal_lsn(),
    coalesce(r.replay_lsn, s.confirmed_flush_lsn, s.restart_lsn)), 0)::bigint AS lag_bytes,
  extract(epoch FROM coalesce(r.replay_lag, '0'))::float8 * 1e3 AS lag_ms,
  coalesce(s.wal_status, ''),
  coalesce(pg_wal_lsn_diff(pg_current_wal_lsn(), s.restart_lsn), 0)::bigint AS kept_bytes
FROM pg_replication_slots s LEFT JOIN pg_stat_replication r ON r.pid = s.active_pid
WHERE NOT s.temporary ORDER BY 1

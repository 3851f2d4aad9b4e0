-- A server's state; at_work: whether a run of the lab holds its lock there.
SELECT current_setting('server_version') AS version, pg_is_in_recovery() AS in_recovery,
  (SELECT count(*) FROM pg_stat_activity
   WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()) AS connections,
  current_setting('max_connections')::int AS max_connections,
  EXISTS (SELECT FROM pg_locks WHERE locktype = 'advisory' AND granted
          AND (classid::bigint << 32) | objid::bigint = hashtext('geo-sharding-lab')) AS at_work

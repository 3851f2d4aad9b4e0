-- Slots and prepared transactions that keep a node's WAL or its deleted rows. Changes nothing.
SELECT 'slot' AS kind, slot_name::text AS name,
  concat_ws(' and ', 'WAL from ' || restart_lsn,
            'rows since transaction ' || coalesce(xmin, catalog_xmin)) AS holds
FROM pg_replication_slots WHERE NOT temporary AND wal_status IS DISTINCT FROM 'lost'
UNION ALL
SELECT 'prepared transaction', gid,
  'its locks and rows since transaction ' || transaction || ' of '
    || to_char(prepared, 'YYYY-MM-DD HH24:MI')
FROM pg_prepared_xacts
ORDER BY kind, name

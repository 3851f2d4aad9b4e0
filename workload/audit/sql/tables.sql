-- Every table of this database that holds rows on this node, with its size and its columns'
-- types: plain tables, leaf partitions, materialized views and large objects. Foreign tables and
-- partitioned parents hold none. Only its own session can read a temporary table, and an unlogged
-- table is empty on a standby. global.home is left out: it has the regions' countries.
SELECT c.oid, n.nspname, c.relname, pg_table_size(c.oid),
  (
    SELECT coalesce(json_object_agg(a.attname, t.typname || ' ' || t.typcategory::text), '{}')
    FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid
    WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
  ),
  (
    SELECT root_schema.nspname
    FROM pg_class root JOIN pg_namespace root_schema ON root_schema.oid = root.relnamespace
    WHERE root.oid = pg_partition_root(c.oid)
  )
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind IN ('r', 'm') AND c.relispopulated
  AND (c.relpersistence = 'p' OR c.relpersistence = 'u' AND NOT pg_is_in_recovery())
  AND (
    n.nspname NOT LIKE 'pg\_%' AND n.nspname NOT IN ('information_schema', 'lab_audit')
    AND (n.nspname, c.relname) <> ('global', 'home')
    OR c.oid = 'pg_largeobject'::regclass
  )
ORDER BY n.nspname, c.relname;

-- Every value of a text or uuid column that the planner's statistics keep, with its column.
-- Partitioned parents and foreign tables too: ANALYZE of either brings other regions' values here.
WITH kept AS (
  SELECT s.schemaname, s.tablename, s.attname,
    s.most_common_vals::text::text[] AS common, s.histogram_bounds::text::text[] AS bounds
  FROM pg_stats s
  JOIN pg_namespace n ON n.nspname = s.schemaname
  JOIN pg_class c ON c.relname = s.tablename AND c.relnamespace = n.oid
  JOIN pg_attribute a ON a.attrelid = c.oid AND a.attname = s.attname
  JOIN pg_type t ON t.oid = a.atttypid
  WHERE t.typcategory = 'S' OR t.typname = 'uuid'
  UNION ALL
  SELECT schemaname, tablename, statistics_name, most_common_vals, NULL FROM pg_stats_ext
  UNION ALL
  SELECT schemaname, tablename, expr, most_common_vals::text::text[],
    histogram_bounds::text::text[]
  FROM pg_stats_ext_exprs
)
SELECT schemaname, tablename, attname, value
FROM kept, unnest(common || bounds) AS value
WHERE value IS NOT NULL AND schemaname NOT LIKE 'pg\_%'
  AND schemaname NOT IN ('information_schema', 'lab_audit');

-- The files of the planner's statistics, relative to the data directory.
WITH relation AS (
  SELECT oid, reltoastrelid FROM pg_class
  WHERE oid IN ('pg_statistic'::regclass, 'pg_statistic_ext_data'::regclass)
), file AS (
  SELECT oid FROM relation UNION SELECT reltoastrelid FROM relation
)
SELECT pg_relation_filepath(oid) FROM file
UNION
SELECT pg_relation_filepath(indexrelid) FROM pg_index WHERE indrelid IN (SELECT oid FROM file);

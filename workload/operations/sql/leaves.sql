-- Each leaf that a node should have, one for each region and partitioned table, and its relkind: r a
-- table of this node, f a foreign table, '' where it is missing.
SELECT region, p.relname, coalesce(l.relkind::text, '')
FROM pg_class p CROSS JOIN unnest(%s::text[]) AS region
LEFT JOIN (pg_class l JOIN pg_namespace n ON n.oid = l.relnamespace)
  ON n.nspname = region AND l.relname = p.relname AND l.relispartition
WHERE p.relnamespace = to_regnamespace('global') AND p.relkind = 'p'
ORDER BY 1, 2

-- Everything that a person can have put on tables: one row for each object, with the text that makes it
-- and what else there is to know. Changes nothing. In psql:
--   SET search_path = ''; SET lab.tables = '{public.customer,public.purchase}'; \i objects.sql
-- With an empty search_path all names in definitions are qualified.
WITH given AS (
  SELECT c.oid, c.relname, c.relnamespace, n.nspname, c.relowner, c.relacl, c.relkind,
    c.relpersistence, c.reltablespace, c.reloptions, c.reltoastrelid, c.relreplident,
    c.relrowsecurity, c.relforcerowsecurity, c.reltype,
    format('%I.%I', n.nspname, c.relname) AS relation
  FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
  WHERE c.oid = ANY (current_setting('lab.tables')::regclass[])
),
-- The parts of a table that may rest on a function, type or operator of a person's.
part AS (
  SELECT g.relation, 'pg_class'::regclass AS classid, g.oid AS objid FROM given g
  UNION ALL SELECT g.relation, 'pg_attrdef'::regclass, d.oid
    FROM given g JOIN pg_attrdef d ON d.adrelid = g.oid
  UNION ALL SELECT g.relation, 'pg_constraint'::regclass, k.oid
    FROM given g JOIN pg_constraint k ON k.conrelid = g.oid
  UNION ALL SELECT g.relation, 'pg_class'::regclass, i.indexrelid
    FROM given g JOIN pg_index i ON i.indrelid = g.oid
  UNION ALL SELECT g.relation, 'pg_statistic_ext'::regclass, s.oid
    FROM given g JOIN pg_statistic_ext s ON s.stxrelid = g.oid
)
SELECT relation, 'table' AS kind, relname::text AS name, relkind::text AS definition,
  jsonb_build_object(
    'owner', relowner::regrole::text,
    'is_superusers', (SELECT rolsuper FROM pg_roles WHERE oid = relowner),
    'persistence', relpersistence,
    'tablespace', (SELECT spcname FROM pg_tablespace WHERE oid = reltablespace),
    'options', (SELECT coalesce(jsonb_agg(option), '[]') FROM (
      SELECT unnest(reloptions) AS option
      UNION ALL SELECT 'toast.' || unnest(t.reloptions) FROM pg_class t WHERE t.oid = given.reltoastrelid
    ) AS o),
    'replica_identity', relreplident,
    'row_security', relrowsecurity OR relforcerowsecurity,
    'label', (SELECT string_agg(provider, ', ') FROM pg_seclabel
              WHERE classoid = 'pg_class'::regclass AND objoid = given.oid),
    'comment', obj_description(oid, 'pg_class')
  ) AS detail
FROM given

UNION ALL
SELECT relation, 'column', a.attname, format_type(a.atttypid, a.atttypmod), jsonb_build_object(
    'number', a.attnum,
    'default', CASE WHEN a.attgenerated = '' THEN pg_get_expr(d.adbin, d.adrelid) END,
    'generated', CASE WHEN a.attgenerated <> '' THEN pg_get_expr(d.adbin, d.adrelid) END,
    'is_virtual', a.attgenerated = 'v',
    'identity', a.attidentity,
    'not_null', a.attnotnull,
    'collation', (SELECT format('%I.%I', n.nspname, c.collname)
                  FROM pg_collation c JOIN pg_namespace n ON n.oid = c.collnamespace
                  WHERE c.oid = a.attcollation AND a.attcollation <> t.typcollation),
    'storage', CASE WHEN a.attstorage <> t.typstorage THEN
      CASE a.attstorage WHEN 'p' THEN 'PLAIN' WHEN 'm' THEN 'MAIN' WHEN 'e' THEN 'EXTERNAL'
      ELSE 'EXTENDED' END END,
    'compression', CASE a.attcompression WHEN 'p' THEN 'pglz' WHEN 'l' THEN 'lz4' END,
    'statistics', nullif(coalesce(a.attstattarget, -1), -1),
    'options', (SELECT coalesce(jsonb_agg(option), '[]') FROM unnest(a.attoptions) AS option
                WHERE option ~ '^n_distinct'),
    -- Arrays, composites and the like may have elements that do not hash: they go by their text.
    'is_hashable', EXISTS (
      SELECT FROM pg_opclass o JOIN pg_am m ON m.oid = o.opcmethod
      WHERE m.amname = 'hash' AND o.opcdefault
        AND o.opcintype = CASE WHEN t.typtype = 'd' THEN t.typbasetype ELSE t.oid END),
    'comment', col_description(a.attrelid, a.attnum))
FROM given JOIN pg_attribute a ON a.attrelid = given.oid AND a.attnum > 0 AND NOT a.attisdropped
JOIN pg_type t ON t.oid = a.atttypid
LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum

UNION ALL
SELECT relation, 'constraint', k.conname, pg_get_constraintdef(k.oid), jsonb_build_object(
    'type', k.contype,
    'columns', (SELECT jsonb_agg(a.attname ORDER BY at) FROM unnest(k.conkey) WITH ORDINALITY u (n, at)
                JOIN pg_attribute a ON a.attrelid = k.conrelid AND a.attnum = u.n),
    'refers_to', (SELECT format('%I.%I', n.nspname, c.relname) FROM pg_class c
                  JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = k.confrelid),
    'is_clustered', coalesce(i.indisclustered, false),
    'is_identity', coalesce(i.indisreplident, false),
    'options', coalesce(to_jsonb(x.reloptions), '[]'),
    'tablespace', (SELECT spcname FROM pg_tablespace WHERE oid = x.reltablespace),
    'comment', obj_description(k.oid, 'pg_constraint'))
FROM given JOIN pg_constraint k ON k.conrelid = given.oid AND k.contype IN ('c', 'u', 'p', 'x', 'f')
LEFT JOIN pg_index i ON i.indexrelid = k.conindid AND k.contype <> 'f'
LEFT JOIN pg_class x ON x.oid = i.indexrelid

UNION ALL
SELECT relation, 'index', x.relname,
  -- What follows the table's name.
  substr(pg_get_indexdef(i.indexrelid),
         length(format('CREATE %sINDEX %I ON %s%s ', CASE WHEN i.indisunique THEN 'UNIQUE ' END,
                       x.relname, CASE given.relkind WHEN 'p' THEN 'ONLY ' END, relation)) + 1),
  jsonb_build_object(
    'is_unique', i.indisunique,
    'is_valid', i.indisvalid,
    'is_clustered', i.indisclustered,
    'is_identity', i.indisreplident,
    'columns', (SELECT jsonb_agg(a.attname ORDER BY at)
                FROM unnest(i.indkey::int2[]) WITH ORDINALITY u (n, at)
                JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = u.n),
    'tablespace', (SELECT spcname FROM pg_tablespace WHERE oid = x.reltablespace),
    'comment', obj_description(x.oid, 'pg_class'))
FROM given JOIN pg_index i ON i.indrelid = given.oid JOIN pg_class x ON x.oid = i.indexrelid
WHERE NOT EXISTS (SELECT FROM pg_constraint WHERE conindid = i.indexrelid AND contype <> 'f')

UNION ALL
SELECT relation, 'statistics', s.stxname,
  format('%sON %s',
    (SELECT '(' || string_agg(CASE kind WHEN 'd' THEN 'ndistinct' WHEN 'f' THEN 'dependencies'
                              ELSE 'mcv' END, ', ') || ') '
     FROM unnest(s.stxkind) AS kind WHERE kind <> 'e'
       AND cardinality(s.stxkeys::int2[]) + (s.stxexprs IS NOT NULL)::int > 1),
    pg_get_statisticsobjdef_columns(s.oid)),
  jsonb_build_object(
    'schema', (SELECT nspname FROM pg_namespace WHERE oid = s.stxnamespace),
    'target', nullif(coalesce(s.stxstattarget, -1), -1),
    'comment', obj_description(s.oid, 'pg_statistic_ext'))
FROM given JOIN pg_statistic_ext s ON s.stxrelid = given.oid

UNION ALL
SELECT relation, 'grant', CASE x.grantee WHEN 0 THEN 'PUBLIC' ELSE x.grantee::regrole::text END,
  x.privilege_type, jsonb_build_object('column', NULL, 'is_grantable', x.is_grantable)
FROM given, aclexplode(relacl) AS x WHERE x.grantee <> relowner
UNION ALL
SELECT relation, 'grant', CASE x.grantee WHEN 0 THEN 'PUBLIC' ELSE x.grantee::regrole::text END,
  x.privilege_type, jsonb_build_object('column', a.attname, 'is_grantable', x.is_grantable)
FROM given JOIN pg_attribute a ON a.attrelid = given.oid AND a.attnum > 0 AND NOT a.attisdropped,
  aclexplode(a.attacl) AS x

UNION ALL
SELECT relation, 'trigger', t.tgname, pg_get_triggerdef(t.oid), NULL
FROM given JOIN pg_trigger t ON t.tgrelid = given.oid AND NOT t.tgisinternal
WHERE t.tgname NOT IN ('lab_note_change', 'lab_note_truncate')

UNION ALL
SELECT relation, 'rule', r.rulename, pg_get_ruledef(r.oid), NULL
FROM given JOIN pg_rewrite r ON r.ev_class = given.oid

UNION ALL
SELECT relation, 'policy', p.polname, NULL, NULL
FROM given JOIN pg_policy p ON p.polrelid = given.oid

UNION ALL
SELECT relation, 'publication', p.pubname, NULL, NULL
FROM given, pg_publication p
WHERE p.puballtables
   OR EXISTS (SELECT FROM pg_publication_rel r WHERE r.prpubid = p.oid AND r.prrelid = given.oid)
   OR EXISTS (SELECT FROM pg_publication_namespace r
              WHERE r.pnpubid = p.oid AND r.pnnspid = given.relnamespace)

UNION ALL
SELECT relation, 'subscription', s.subname, NULL, NULL
FROM given JOIN pg_subscription_rel r ON r.srrelid = given.oid
JOIN pg_subscription s ON s.oid = r.srsubid

UNION ALL
SELECT relation, 'foreign key', k.conname, k.conrelid::regclass::text, NULL
FROM given JOIN pg_constraint k ON k.confrelid = given.oid AND k.contype = 'f'
WHERE k.conrelid NOT IN (SELECT oid FROM given) AND k.conparentid = 0

-- Views, and functions and columns that are declared to use the table or its row type.
UNION ALL
SELECT DISTINCT relation, CASE c.relkind WHEN 'm' THEN 'materialized view' ELSE 'view' END,
  c.oid::regclass::text, NULL, NULL::jsonb
FROM given JOIN pg_depend d ON d.refclassid = 'pg_class'::regclass AND d.refobjid = given.oid
JOIN pg_rewrite r ON d.classid = 'pg_rewrite'::regclass AND r.oid = d.objid
JOIN pg_class c ON c.oid = r.ev_class AND c.oid <> given.oid
UNION ALL
SELECT DISTINCT relation, 'function', p.oid::regprocedure::text, NULL, NULL::jsonb
FROM given JOIN pg_depend d ON d.classid = 'pg_proc'::regclass
  AND ((d.refclassid = 'pg_class'::regclass AND d.refobjid = given.oid)
    OR (d.refclassid = 'pg_type'::regclass AND d.refobjid IN (
          SELECT reltype UNION ALL SELECT typarray FROM pg_type WHERE oid = reltype)))
JOIN pg_proc p ON p.oid = d.objid
UNION ALL
SELECT relation, 'column of its row type', format('%s.%I', a.attrelid::regclass, a.attname), NULL, NULL
FROM given JOIN pg_type t ON t.oid = given.reltype
JOIN pg_attribute a ON a.atttypid IN (t.oid, t.typarray) AND NOT a.attisdropped

UNION ALL
SELECT relation, 'inheritance', format('%s from %s', i.inhrelid::regclass, i.inhparent::regclass),
  NULL, jsonb_build_object('is_partition', c.relispartition AND c.oid = given.oid)
FROM given JOIN pg_inherits i ON given.oid IN (i.inhparent, i.inhrelid)
JOIN pg_class c ON c.oid = i.inhrelid
UNION ALL
SELECT relation, 'sequence', s.oid::regclass::text, a.attname, NULL
FROM given JOIN pg_depend d ON d.refclassid = 'pg_class'::regclass AND d.refobjid = given.oid
  AND d.classid = 'pg_class'::regclass AND d.deptype IN ('a', 'i')
JOIN pg_class s ON s.oid = d.objid AND s.relkind = 'S'
JOIN pg_attribute a ON a.attrelid = given.oid AND a.attnum = d.refobjsubid

-- What the table's parts rest on that another node does not have.
UNION ALL
SELECT DISTINCT relation, 'need',
  CASE WHEN d.objsubid > 0 OR p.classid <> 'pg_class'::regclass
    THEN pg_describe_object(d.classid, d.objid, d.objsubid)
    ELSE pg_describe_object(d.classid, d.objid, 0) END,
  pg_describe_object(d.refclassid, d.refobjid, 0), NULL::jsonb
FROM part p JOIN pg_depend d ON d.classid = p.classid AND d.objid = p.objid
WHERE d.refobjid >= 16384
  AND d.refclassid IN ('pg_proc'::regclass, 'pg_type'::regclass, 'pg_collation'::regclass,
    'pg_operator'::regclass, 'pg_opclass'::regclass, 'pg_opfamily'::regclass,
    'pg_ts_config'::regclass, 'pg_am'::regclass)
  AND NOT (d.refclassid = 'pg_type'::regclass AND d.refobjid IS NOT DISTINCT FROM to_regtype('global.country')::oid)
-- Once, not for each table.
UNION ALL
SELECT '', 'event trigger', e.evtname, e.evtevent, NULL
FROM pg_event_trigger e WHERE e.evtenabled <> 'D'
ORDER BY 1, 2, 3

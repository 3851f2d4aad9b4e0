-- Foreign keys of one column: table, column, referenced table, referenced column.
SELECT c.conrelid, child.attname, c.confrelid, parent.attname
FROM pg_constraint c
JOIN pg_attribute child ON child.attrelid = c.conrelid AND child.attnum = c.conkey[1]
JOIN pg_attribute parent ON parent.attrelid = c.confrelid AND parent.attnum = c.confkey[1]
WHERE c.contype = 'f' AND cardinality(c.conkey) = 1
ORDER BY c.conrelid, c.conname;

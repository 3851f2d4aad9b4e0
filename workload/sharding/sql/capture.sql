-- Change capture: the keys of rows that change while a table is copied. A trigger on each table calls
-- the function, whose argument is the table's name. It is left with no right to call it: anybody could
-- make a trigger of it, and write here as its owner.
CREATE TABLE lab.changed (kind text NOT NULL, id uuid NOT NULL);
CREATE OR REPLACE FUNCTION lab.note_change() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $body$
BEGIN
  IF TG_OP = 'TRUNCATE' THEN
    RAISE EXCEPTION USING
      ERRCODE = 'object_in_use',
      MESSAGE = format('%I.%I is being copied: no TRUNCATE until that is over',
                       TG_TABLE_SCHEMA, TG_TABLE_NAME),
      HINT = 'DELETE its rows, or wait for the playbook to end.';
  END IF;
  IF TG_OP <> 'INSERT' THEN
    INSERT INTO lab.changed VALUES (TG_ARGV[0], OLD.id);
  END IF;
  IF TG_OP = 'INSERT' OR TG_OP = 'UPDATE' AND NEW.id <> OLD.id THEN
    INSERT INTO lab.changed VALUES (TG_ARGV[0], NEW.id);
  END IF;
  RETURN NULL;
END
$body$;
REVOKE ALL ON FUNCTION lab.note_change() FROM PUBLIC;

-- Schema lab: all tables and functions that the lab itself needs on a node. Safe to run again: it
-- writes only what is missing. Functions are written as pg_get_functiondef prints them, and
-- workload/sql.py leaves out those that the node has word for word.
CREATE SCHEMA IF NOT EXISTS lab;

-- The replication barrier: a session writes a token on one node and waits for it on the others.
CREATE TABLE IF NOT EXISTS lab.marker (id int PRIMARY KEY, token uuid NOT NULL);
-- Rows were deleted and their bytes are still in the files: written with the deletion, removed when
-- the files are rewritten (make move, make forget).
CREATE TABLE IF NOT EXISTS lab.to_scrub (since timestamptz NOT NULL DEFAULT clock_timestamp());

-- Waits on the node itself, so a caller across the WAN gets the answer after one round trip.
CREATE OR REPLACE FUNCTION lab.await_marker(wanted uuid, timeout_ms integer)
 RETURNS boolean
 LANGUAGE plpgsql
AS $function$
DECLARE
  deadline timestamptz := clock_timestamp() + timeout_ms * interval '1 ms';
BEGIN
  LOOP
    PERFORM FROM lab.marker WHERE id = 1 AND token = wanted;
    IF FOUND OR clock_timestamp() > deadline THEN
      RETURN FOUND;
    END IF;
    PERFORM pg_sleep(0.001);
  END LOOP;
END
$function$
;

-- Whether this node has a region's rows in a table of its own, as their home or as a copy. 0 RTT.
CREATE OR REPLACE FUNCTION lab.is_here(of_region text)
 RETURNS boolean
 LANGUAGE sql
 STABLE
AS $function$
  SELECT EXISTS (SELECT FROM pg_class
                 WHERE oid = to_regclass(format('%I.customer', of_region)) AND relkind = 'r')
$function$
;

-- A session's connection to a region, opened where it has none. Raises 42501 for a role that does not
-- leave home. 0 RTT, or about ten.
CREATE OR REPLACE FUNCTION lab.link(to_region text, anew boolean DEFAULT false)
 RETURNS text
 LANGUAGE plpgsql
AS $function$
DECLARE
  name text := 'lab_' || to_region;
  is_open boolean := name = ANY (coalesce(public.dblink_get_connections(), '{}'));
BEGIN
  IF NOT has_server_privilege(to_region, 'USAGE') THEN
    RAISE EXCEPTION USING
      ERRCODE = 'insufficient_privilege',
      MESSAGE = format('%s does not leave home (%s), and this would go to %s',
                       current_user, global.here(), to_region);
  END IF;
  IF is_open AND anew THEN
    PERFORM public.dblink_disconnect(name);
  END IF;
  IF anew OR NOT is_open THEN
    PERFORM public.dblink_connect(name, to_region);
  END IF;
  RETURN name;
END
$function$
;

-- Send one query to each region at once, and run it here meanwhile for regions whose rows are here.
-- The query returns one jsonb, with %I for the region's schema. A connection that broke since its
-- last use (the far side was restarted, or a standby took over) is opened again, once. 1 RTT to the
-- farthest.
CREATE OR REPLACE FUNCTION lab.ask(question text, regions text[])
 RETURNS TABLE(region text, answer jsonb)
 LANGUAGE plpgsql
AS $function$
DECLARE
  near text[] := ARRAY(SELECT one FROM unnest(regions) AS one WHERE lab.is_here(one));
  far text[] := ARRAY(SELECT one FROM unnest(regions) AS one WHERE NOT lab.is_here(one));
  answers jsonb[];
  one text;
  reply jsonb;
BEGIN
  FOR attempt IN 1..2 LOOP
    BEGIN
      answers := '{}';
      FOREACH one IN ARRAY far LOOP
        PERFORM public.dblink_send_query(lab.link(one, attempt = 2), format(question, one));
      END LOOP;
      FOREACH one IN ARRAY near LOOP
        EXECUTE format(question, one) INTO reply;
        answers := answers || jsonb_build_object('region', one, 'answer', reply);
      END LOOP;
      FOREACH one IN ARRAY far LOOP
        reply := NULL;
        SELECT r.reply INTO reply FROM public.dblink_get_result('lab_' || one) AS r (reply jsonb);
        -- Until it has nothing more to give, a connection takes no other question.
        PERFORM FROM public.dblink_get_result('lab_' || one) AS rest (reply jsonb);
        answers := answers || jsonb_build_object('region', one, 'answer', reply);
      END LOOP;
      EXIT;
    EXCEPTION WHEN connection_exception OR connection_does_not_exist OR connection_failure
      OR admin_shutdown OR crash_shutdown THEN
      IF attempt = 2 THEN
        RAISE;
      END IF;
    END;
  END LOOP;
  RETURN QUERY
    SELECT each ->> 'region', nullif(each -> 'answer', 'null') FROM unnest(answers) AS each;
END
$function$
;

-- An UPDATE may move a customer to another country of the same region only. The type of the column
-- refuses an unknown country.
CREATE OR REPLACE FUNCTION lab.refuse_move(customer uuid, from_country text, to_country text)
 RETURNS void
 LANGUAGE plpgsql
 STABLE
AS $function$
DECLARE
  old_region text := (SELECT region FROM global.home WHERE country = from_country);
  new_region text := (SELECT region FROM global.home WHERE country = to_country);
BEGIN
  IF new_region <> old_region THEN
    RAISE EXCEPTION USING
      ERRCODE = 'feature_not_supported',
      MESSAGE = format('customer %s is at home in %s, and country %L in %s: no UPDATE moves them,'
                       ' make move CUSTOMER=%1$s COUNTRY=%3$s does, in phase after',
                       customer, old_region, to_country, new_region);
  END IF;
END
$function$
;

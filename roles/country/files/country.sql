-- Where each customer is. A constant default is kept in the catalogue (PostgreSQL 11 and newer), so
-- no row is rewritten and the lock lasts as long as one catalogue entry. Safe to run again.
--
-- The catalogue is asked first: ADD COLUMN IF NOT EXISTS would take the lock to find out.
DO $$
BEGIN
  IF NOT EXISTS (
    SELECT FROM pg_attribute
    WHERE attrelid = 'public.customer'::regclass AND attname = 'country' AND NOT attisdropped
  ) THEN
    ALTER TABLE customer ADD COLUMN country TEXT NOT NULL DEFAULT 'uk';
  END IF;
END
$$;

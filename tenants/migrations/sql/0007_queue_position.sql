-- How many wait before an allocation, whoever they are; the number alone tells nothing about them.
CREATE FUNCTION queue_position(p_allocation uuid) RETURNS bigint
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp AS $$
  SELECT 1 + (SELECT count(*) FROM tenants_allocation o
              WHERE o.queued_at IS NOT NULL AND o.released_at IS NULL AND o.deletion_requested_at IS NULL
                AND (o.queued_at, o.id) < (a.queued_at, a.id))
  FROM tenants_allocation a WHERE a.id = p_allocation AND a.queued_at IS NOT NULL
$$;

-- An event's data as the text its hash covers, and the checkpoint chain; for verification outside the database.
CREATE FUNCTION checkpoint_hash(p_previous text, p_at timestamptz, p_heads jsonb) RETURNS text
LANGUAGE sql IMMUTABLE AS $$
  SELECT encode(sha256(convert_to(p_previous || chr(31) || (extract(epoch FROM p_at) * 1000000)::bigint::text
              || chr(31) || p_heads::text, 'UTF8')), 'hex')
$$;

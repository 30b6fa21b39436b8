-- What operations on people may learn beyond row-level security, each as narrow as can be, and the counter of
-- log-in attempts, which no role reads directly.

-- Who adds a member names a person he cannot see yet.
CREATE FUNCTION person_for_email(p_email text) RETURNS uuid
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp AS
  $$ SELECT id FROM tenants_person WHERE lower(email) = lower(p_email) AND is_active $$;

-- How many active owners a tenant has on its whole path, apart from one person. Ancestors' members are not
-- visible to an owner of the child, and the last owner must be known all the same.
CREATE FUNCTION tenant_owners(p_tenant uuid, p_except uuid) RETURNS int
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp AS $$
  SELECT count(DISTINCT m.person_id)::int FROM tenants_tenant t
  JOIN tenants_membership m ON m.tenant_id = ANY (t.path) AND m.role = 3 AND m.person_id IS DISTINCT FROM p_except
  JOIN tenants_person p ON p.id = m.person_id AND p.is_active
  WHERE t.id = p_tenant
$$;

-- When use on the path of a tenant ends by promise, summed by end: for the earliest time in an answer about a
-- shortage. Names nobody. Production ends by a person only, so it promises nothing.
CREATE FUNCTION quota_endings(p_tenant uuid, p_dimensions text[])
RETURNS TABLE (tenant_id uuid, dimension text, at timestamptz, amount bigint)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp AS $$
  SELECT a.id, c.dimension::text, coalesce(al.grace_until, al.expires_at), sum(c.amount)::bigint
  FROM tenants_tenant t
  CROSS JOIN LATERAL unnest(t.path) AS a(id)
  JOIN tenants_tenant s ON s.path @> ARRAY[a.id]
  JOIN tenants_quotacharge c ON c.tenant_id = s.id AND c.dimension = ANY (p_dimensions)
  JOIN tenants_allocation al ON al.id = c.allocation_id AND al.service_class <> 'production'
    AND al.expires_at IS NOT NULL
  WHERE t.id = p_tenant
  GROUP BY 1, 2, 3
$$;

CREATE TABLE tenants_loginattempt (
  key varchar(64) PRIMARY KEY, -- SHA-256 over what is limited: no e-mail lies here
  since timestamptz NOT NULL,
  attempts int NOT NULL
);
REVOKE ALL ON tenants_loginattempt FROM cp_app, cp_worker;

-- Counts one attempt and returns how many there were in the window that is open.
CREATE FUNCTION login_attempt(p_key text, p_now timestamptz, p_window interval) RETURNS int
LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp AS $$
  INSERT INTO tenants_loginattempt AS a (key, since, attempts) VALUES (p_key, p_now, 1)
  ON CONFLICT (key) DO UPDATE SET
    attempts = CASE WHEN a.since <= p_now - p_window THEN 1 ELSE a.attempts + 1 END,
    since = CASE WHEN a.since <= p_now - p_window THEN p_now ELSE a.since END
  RETURNING attempts
$$;

-- A log-in that worked clears its counter; old counters go with it.
CREATE FUNCTION login_attempt_clear(p_key text, p_before timestamptz) RETURNS void
LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp AS
  $$ DELETE FROM tenants_loginattempt WHERE key = p_key OR since < p_before $$;

-- What was granted for an allocation with an end, and what it uses of that, end together (at its first Ready both move
-- on together): so the use is promised to end with its grant before the allocation is Ready and has an end of its own.
-- Without this a second request of the same tenant, approved while the first is still being built, would wait.
CREATE OR REPLACE FUNCTION quota_endings(p_tenant uuid, p_dimensions text[])
RETURNS TABLE (tenant_id uuid, dimension text, at timestamptz, amount bigint)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp AS $$
  SELECT e.tenant_id, e.dimension, e.at, sum(e.amount)::bigint FROM (
    SELECT a.id AS tenant_id, c.dimension::text AS dimension, c.amount,
           coalesce(al.grace_until, al.expires_at,
                    (SELECT max(q.until) FROM tenants_request r JOIN tenants_quota q ON q.granted_by_id = r.id
                     WHERE r.allocation_id = al.id AND q.tenant_id = a.id AND q.dimension = c.dimension)) AS at
    FROM tenants_tenant t
    CROSS JOIN LATERAL unnest(t.path) AS a(id)
    JOIN tenants_tenant s ON s.path @> ARRAY[a.id]
    JOIN tenants_quotacharge c ON c.tenant_id = s.id AND c.dimension = ANY (p_dimensions)
    JOIN tenants_allocation al ON al.id = c.allocation_id AND al.service_class <> 'production'
    WHERE t.id = p_tenant
  ) AS e
  WHERE e.at IS NOT NULL
  GROUP BY 1, 2, 3
$$;

-- Parts of budgets show to whoever sees their tenant; gateways write their own.
ALTER TABLE tenants_budgetlease ENABLE ROW LEVEL SECURITY;
CREATE POLICY app_rule ON tenants_budgetlease TO cp_app
  USING ((SELECT app_sees_all()) OR tenant_id = ANY ((SELECT app_tenants())::uuid[]))
  WITH CHECK ((SELECT app_sees_all()) OR tenant_id = ANY ((SELECT app_tenants())::uuid[]));
CREATE POLICY worker_rule ON tenants_budgetlease TO cp_worker USING (app_actor() <> '') WITH CHECK (app_actor() <> '');

-- What a tenant's path says to its gateways: the smallest rates, and which dimensions of tokens are limited somewhere.
-- The clock has no say in it: a limit that has ended is no limit when a part is asked for.
CREATE FUNCTION gateway_limits(p_tenants uuid[])
RETURNS TABLE (tenant_id uuid, requests_per_minute bigint, tokens_per_minute bigint, dimensions text[])
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp AS $$
  SELECT t.id,
         min((a.policy ->> 'requests_per_minute')::bigint), min((a.policy ->> 'tokens_per_minute')::bigint),
         (SELECT coalesce(array_agg(DISTINCT q.dimension::text ORDER BY q.dimension::text), '{}') FROM tenants_quota q
          WHERE q.tenant_id = ANY (t.path) AND NOT q.inherit AND q.dimension IN ('tokens_month', 'token_spend_month'))
  FROM tenants_tenant t JOIN tenants_tenant a ON a.id = ANY (t.path)
  WHERE t.id = ANY (p_tenants)
  GROUP BY t.id, t.path
$$;

-- For each tenant of a gateway's path that limits a dimension: the limit, and what other gateways below it have of it.
-- Of one that was removed some time ago only what it said it had spent: its unspent part is free again.
CREATE FUNCTION budget_levels(p_gateway uuid, p_dimension text, p_budget text, p_period timestamptz, p_now timestamptz)
RETURNS TABLE (amount numeric, taken numeric)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp AS $$
  SELECT q.amount, coalesce(l.taken, 0)
  FROM tenants_gatewayreplica g JOIN tenants_tenant t ON t.id = g.tenant_id
  CROSS JOIN LATERAL unnest(t.path) AS a(id)
  JOIN LATERAL (
    SELECT sum(q.amount) AS amount FROM tenants_quota q
    WHERE q.tenant_id = a.id AND q.dimension = p_dimension AND NOT q.inherit AND (q.until IS NULL OR q.until > p_now)
    HAVING count(*) > 0
  ) q ON true
  LEFT JOIN LATERAL (
    SELECT sum(b.lost + CASE WHEN o.removed_at < p_now - interval '10 minutes' THEN b.spent
                             ELSE greatest(b.granted, b.spent) END) AS taken
    FROM tenants_tenant s JOIN tenants_budgetlease b ON b.tenant_id = s.id
    JOIN tenants_gatewayreplica o ON o.id = b.gateway_id
    WHERE s.path @> ARRAY[a.id] AND b.budget = p_budget AND b.period_start = p_period AND b.gateway_id <> p_gateway
  ) l ON true
  WHERE g.id = p_gateway
$$;

-- Tokens of a month are used as gateways say; everything else as it is charged.
CREATE OR REPLACE FUNCTION quota_position(p_tenant uuid, p_dimensions text[])
RETURNS TABLE (tenant_id uuid, depth int, dimension text, amount bigint, inherit boolean, until timestamptz,
               used bigint, pending bigint)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp AS $$
  SELECT a.id, a.depth::int - 1, d.name, q.amount, q.inherit, q.until,
         (coalesce(u.used, 0) + coalesce(m.spent, 0))::bigint, coalesce(u.pending, 0)::bigint
  FROM tenants_tenant t
  CROSS JOIN LATERAL unnest(t.path) WITH ORDINALITY AS a(id, depth)
  CROSS JOIN unnest(p_dimensions) AS d(name)
  LEFT JOIN tenants_quota q ON q.tenant_id = a.id AND q.dimension = d.name
  LEFT JOIN LATERAL (
    SELECT sum(c.amount) FILTER (WHERE NOT c.pending) AS used, sum(c.amount) FILTER (WHERE c.pending) AS pending
    FROM tenants_tenant s JOIN tenants_quotacharge c ON c.tenant_id = s.id AND c.dimension = d.name
    WHERE s.path @> ARRAY[a.id]
  ) u ON true
  LEFT JOIN LATERAL (
    SELECT CASE d.name WHEN 'tokens_month' THEN sum(b.spent + b.lost)
                       ELSE ceil(sum(b.spent + b.lost) / 1000000000) END AS spent
    FROM tenants_tenant s JOIN tenants_budgetlease b ON b.tenant_id = s.id
    WHERE d.name IN ('tokens_month', 'token_spend_month') AND s.path @> ARRAY[a.id]
      AND b.budget = CASE d.name WHEN 'tokens_month' THEN 'tenant:tokens' ELSE 'tenant:money' END
      AND b.period_start = date_trunc('month', now() AT TIME ZONE 'UTC') AT TIME ZONE 'UTC'
  ) m ON true
  WHERE t.id = p_tenant
$$;

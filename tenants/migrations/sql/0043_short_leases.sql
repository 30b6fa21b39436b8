-- For each tenant of a gateway's path that limits a dimension: the limit, what other gateways below it have of it and
-- what of that they have used, how many of them live, and whether one of them had less than it needed lately.
-- Of one that was removed some time ago only what it said it had spent: its unspent part is free again. A limit all of
-- whose rows have ended is 0, not none: a budget must not end by becoming boundless.
-- `budget_levels` stays for workers of the release before.
CREATE FUNCTION budget_parts(p_gateway uuid, p_dimension text, p_budget text, p_period timestamptz, p_now timestamptz)
RETURNS TABLE (amount numeric, taken numeric, used numeric, sharers bigint, short boolean)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp AS $$
  SELECT q.amount, coalesce(l.taken, 0), coalesce(l.used, 0), coalesce(l.sharers, 0), coalesce(l.short, false)
  FROM tenants_gatewayreplica g JOIN tenants_tenant t ON t.id = g.tenant_id
  CROSS JOIN LATERAL unnest(t.path) AS a(id)
  JOIN LATERAL (
    SELECT coalesce(sum(q.amount) FILTER (WHERE q.until IS NULL OR q.until > p_now), 0) AS amount FROM tenants_quota q
    WHERE q.tenant_id = a.id AND q.dimension = p_dimension AND NOT q.inherit
    HAVING count(*) > 0
  ) q ON true
  LEFT JOIN LATERAL (
    SELECT sum(b.lost + CASE WHEN o.removed_at < p_now - interval '10 minutes' THEN b.spent
                             ELSE greatest(b.granted, b.spent) END) AS taken,
           sum(b.lost + b.spent) AS used,
           count(*) FILTER (WHERE o.removed_at IS NULL) AS sharers,
           bool_or(b.short AND o.removed_at IS NULL AND b.updated_at > p_now - interval '1 minute') AS short
    FROM tenants_tenant s JOIN tenants_budgetlease b ON b.tenant_id = s.id
    JOIN tenants_gatewayreplica o ON o.id = b.gateway_id
    WHERE s.path @> ARRAY[a.id] AND b.budget = p_budget AND b.period_start = p_period AND b.gateway_id <> p_gateway
  ) l ON true
  WHERE g.id = p_gateway
$$;

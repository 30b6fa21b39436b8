-- What gateways (`agent`) need beyond their tenant's rows, and who sees sums of usage.

-- What proves a gateway and which version it should have. Asked before its principal is known (`auth`), for one at
-- enrolment and log-in, for all that wait for news at once by the long poll. Digests only; no secret leaves.
CREATE FUNCTION gateway_entries(p_gateways uuid[])
RETURNS TABLE (id uuid, credential_digest varchar, token_digest varchar, token_expires_at timestamptz,
               config_version bigint, removed boolean)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp AS $$
  SELECT g.id, g.credential_digest, g.token_digest, g.token_expires_at, g.config_version, g.removed_at IS NOT NULL
  FROM tenants_gatewayreplica g WHERE g.id = ANY (p_gateways) AND app_actor() IN ('auth', 'system')
$$;

-- The deepest suspension in force on a tenant's path. A child must know it is suspended from above, not by whom.
CREATE FUNCTION tenant_suspension(p_tenant uuid) RETURNS text
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp AS $$
  SELECT s.depth::text FROM tenants_tenant t JOIN tenants_suspension s ON s.tenant_id = ANY (t.path)
  WHERE t.id = p_tenant AND s.ended_at IS NULL
  ORDER BY array_position(ARRAY['power', 'network', 'keys'], s.depth::text) LIMIT 1
$$;

DO $$
DECLARE
  rule text := '(SELECT app_sees_all()) OR tenant_id = ANY ((SELECT app_tenants())::uuid[])';
  name text;
BEGIN
  FOREACH name IN ARRAY ARRAY['tenants_endpointusage', 'tenants_usagesubject'] LOOP
    EXECUTE format('ALTER TABLE %I ENABLE ROW LEVEL SECURITY', name);
    EXECUTE format('CREATE POLICY app_rule ON %I TO cp_app USING (%s) WITH CHECK (%s)', name, rule, rule);
    EXECUTE format('CREATE POLICY worker_rule ON %I TO cp_worker USING (app_actor() <> '''') WITH CHECK (app_actor() <> '''')',
                   name);
    EXECUTE format('GRANT SELECT, INSERT, UPDATE, DELETE ON %I TO cp_app, cp_worker', name);
  END LOOP;
END $$;

-- The estate is everybody's to read and the platform's to write: what a member's claim changes there is changed by the
-- ledger's own functions, which run as the owner of the tables.
DO $$
DECLARE
  name text;
BEGIN
  FOREACH name IN ARRAY ARRAY['tenants_provider', 'tenants_host', 'tenants_gpudevice', 'tenants_migdevice']
  LOOP
    EXECUTE format('DROP POLICY app_rule ON %I', name);
    EXECUTE format('CREATE POLICY app_reads ON %I FOR SELECT TO cp_app USING (app_actor() <> '''')', name);
    EXECUTE format('CREATE POLICY app_writes ON %I TO cp_app USING ((SELECT app_sees_all())) WITH CHECK ((SELECT app_sees_all()))', name);
  END LOOP;
END $$;

-- Who may claim on a host may also lock it: `FOR UPDATE` asks for the right to write.
CREATE FUNCTION ledger_lock_host(p_host uuid) RETURNS void
LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp AS $$
  SELECT FROM tenants_host WHERE id = p_host FOR NO KEY UPDATE
$$;

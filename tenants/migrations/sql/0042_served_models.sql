-- A tenant's own models show to whoever sees the tenant or is below it, and are written in its name; the others show to
-- all and are written by the platform.
DROP POLICY app_reads ON tenants_servedmodel;
DROP POLICY app_writes ON tenants_servedmodel;
CREATE POLICY app_reads ON tenants_servedmodel FOR SELECT TO cp_app
  USING (app_actor() <> '' AND (tenant_id IS NULL OR (SELECT app_sees_all()) OR tenant_id = ANY ((SELECT app_tenants())::uuid[])
         OR tenant_id = ANY ((SELECT app_ancestors())::uuid[])));
CREATE POLICY app_writes ON tenants_servedmodel TO cp_app
  USING ((SELECT app_sees_all()) OR tenant_id = ANY ((SELECT app_tenants())::uuid[]))
  WITH CHECK ((SELECT app_sees_all()) OR tenant_id = ANY ((SELECT app_tenants())::uuid[]));

-- Measured starts name nobody: everybody's next estimate is corrected by them. Operators reset, workers measure.
DO $$
DECLARE
  name text;
BEGIN
  FOREACH name IN ARRAY ARRAY['tenants_fitcorrection', 'tenants_fitmeasurement', 'tenants_modelstage']
  LOOP
    EXECUTE format('ALTER TABLE %I ENABLE ROW LEVEL SECURITY', name);
    EXECUTE format('CREATE POLICY app_reads ON %I FOR SELECT TO cp_app USING (app_actor() <> '''')', name);
    EXECUTE format('CREATE POLICY app_writes ON %I TO cp_app USING ((SELECT app_sees_all())) WITH CHECK ((SELECT app_sees_all()))', name);
    EXECUTE format('CREATE POLICY worker_rule ON %I TO cp_worker USING (app_actor() <> '''') WITH CHECK (app_actor() <> '''')', name);
  END LOOP;
END $$;

-- A budget shows to whoever sees its tenant; when it was last looked at is the workers' own.
ALTER TABLE tenants_budget ENABLE ROW LEVEL SECURITY;
CREATE POLICY app_rule ON tenants_budget TO cp_app
  USING ((SELECT app_sees_all()) OR tenant_id = ANY ((SELECT app_tenants())::uuid[]))
  WITH CHECK ((SELECT app_sees_all()) OR tenant_id = ANY ((SELECT app_tenants())::uuid[]));
CREATE POLICY worker_rule ON tenants_budget TO cp_worker USING (app_actor() <> '') WITH CHECK (app_actor() <> '');

-- Rollouts show like the endpoint that they are of.
ALTER TABLE tenants_rollout ENABLE ROW LEVEL SECURITY;
CREATE POLICY app_rule ON tenants_rollout TO cp_app
  USING ((SELECT app_sees_all()) OR tenant_id = ANY ((SELECT app_tenants())::uuid[]))
  WITH CHECK ((SELECT app_sees_all()) OR tenant_id = ANY ((SELECT app_tenants())::uuid[]));
CREATE POLICY worker_rule ON tenants_rollout TO cp_worker USING (app_actor() <> '') WITH CHECK (app_actor() <> '');

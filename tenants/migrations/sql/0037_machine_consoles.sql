-- A console shows to the person who asked for it, in a tenant that he sees; workers answer and purge it.
ALTER TABLE tenants_machineconsole ENABLE ROW LEVEL SECURITY;
CREATE POLICY app_rule ON tenants_machineconsole TO cp_app
  USING (person_id = (SELECT app_person()) AND tenant_id = ANY ((SELECT app_tenants())::uuid[]))
  WITH CHECK (person_id = (SELECT app_person()) AND tenant_id = ANY ((SELECT app_tenants())::uuid[])
    AND sealed IS NULL AND answered_at IS NULL);
CREATE POLICY worker_rule ON tenants_machineconsole TO cp_worker
  USING (app_actor() <> '') WITH CHECK (app_actor() <> '');
REVOKE UPDATE ON tenants_machineconsole FROM cp_app;

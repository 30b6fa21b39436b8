-- A VLAN shows to whoever sees its tenant; workers alone take and give them back.
ALTER TABLE tenants_vlan ENABLE ROW LEVEL SECURITY;
CREATE POLICY app_rule ON tenants_vlan TO cp_app
  USING ((SELECT app_sees_all()) OR tenant_id = ANY ((SELECT app_tenants())::uuid[])) WITH CHECK (false);
CREATE POLICY worker_rule ON tenants_vlan TO cp_worker USING (app_actor() <> '') WITH CHECK (app_actor() <> '');
REVOKE INSERT, UPDATE, DELETE ON tenants_vlan FROM cp_app;

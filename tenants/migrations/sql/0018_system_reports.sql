-- Reports of the doctor: people with a platform role read them and ask for one, processes write them.
ALTER TABLE tenants_systemreport ENABLE ROW LEVEL SECURITY;
CREATE POLICY app_rule ON tenants_systemreport TO cp_app
  USING ((SELECT app_sees_all())) WITH CHECK ((SELECT app_sees_all()));
CREATE POLICY worker_rule ON tenants_systemreport TO cp_worker
  USING (app_actor() <> '') WITH CHECK (app_actor() <> '');
REVOKE UPDATE, DELETE ON tenants_systemreport FROM cp_app;

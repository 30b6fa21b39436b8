-- What an endpoint looks like from minute to minute shows to whoever sees its tenant; gateways write their own.
ALTER TABLE tenants_endpointminute ENABLE ROW LEVEL SECURITY;
CREATE POLICY app_rule ON tenants_endpointminute TO cp_app
  USING ((SELECT app_sees_all()) OR tenant_id = ANY ((SELECT app_tenants())::uuid[]))
  WITH CHECK ((SELECT app_sees_all()) OR tenant_id = ANY ((SELECT app_tenants())::uuid[]));
CREATE POLICY worker_rule ON tenants_endpointminute TO cp_worker
  USING (app_actor() <> '') WITH CHECK (app_actor() <> '');

-- Tells open charts; a look that changes nothing writes nothing, so it says nothing either.
CREATE FUNCTION live_tell_load() RETURNS trigger
LANGUAGE plpgsql SET search_path = public, pg_temp AS $$
BEGIN
  PERFORM pg_notify('tenantry_live', concat_ws(' ', 'load', NEW.endpoint_id));
  RETURN NULL;
END $$;
CREATE TRIGGER live AFTER INSERT OR UPDATE ON tenants_endpointminute FOR EACH ROW EXECUTE FUNCTION live_tell_load();

-- Logs are asked for by people and read by workers; nobody but they writes lines.
ALTER TABLE tenants_endpointlog ENABLE ROW LEVEL SECURITY;
CREATE POLICY app_rule ON tenants_endpointlog TO cp_app
  USING ((SELECT app_sees_all()) OR tenant_id = ANY ((SELECT app_tenants())::uuid[]))
  WITH CHECK (((SELECT app_sees_all()) OR tenant_id = ANY ((SELECT app_tenants())::uuid[]))
    AND answered_at IS NULL AND lines = '[]'::jsonb);
CREATE POLICY worker_rule ON tenants_endpointlog TO cp_worker
  USING (app_actor() <> '') WITH CHECK (app_actor() <> '');
REVOKE UPDATE ON tenants_endpointlog FROM cp_app;

ALTER TABLE tenants_benchmark ENABLE ROW LEVEL SECURITY;
CREATE POLICY app_rule ON tenants_benchmark TO cp_app
  USING ((SELECT app_sees_all()) OR tenant_id = ANY ((SELECT app_tenants())::uuid[]))
  WITH CHECK ((SELECT app_sees_all()) OR tenant_id = ANY ((SELECT app_tenants())::uuid[]));
CREATE POLICY worker_rule ON tenants_benchmark TO cp_worker
  USING (app_actor() <> '') WITH CHECK (app_actor() <> '');
CREATE TRIGGER live AFTER INSERT OR UPDATE ON tenants_benchmark FOR EACH ROW EXECUTE FUNCTION live_tell_load();

-- Addresses are looked at by workers; people read what was seen.
ALTER TABLE tenants_addresscheck ENABLE ROW LEVEL SECURITY;
CREATE POLICY app_rule ON tenants_addresscheck TO cp_app
  USING ((SELECT app_sees_all()) OR tenant_id = ANY ((SELECT app_tenants())::uuid[])) WITH CHECK (false);
CREATE POLICY worker_rule ON tenants_addresscheck TO cp_worker
  USING (app_actor() <> '') WITH CHECK (app_actor() <> '');
CREATE FUNCTION live_tell_address() RETURNS trigger
LANGUAGE plpgsql SET search_path = public, pg_temp AS $$
BEGIN
  PERFORM pg_notify('tenantry_live', concat_ws(' ', 'endpoint', NEW.endpoint_id, NEW.tenant_id));
  RETURN NULL;
END $$;
CREATE TRIGGER live AFTER INSERT ON tenants_addresscheck FOR EACH ROW EXECUTE FUNCTION live_tell_address();
CREATE TRIGGER live_change AFTER UPDATE ON tenants_addresscheck FOR EACH ROW
  WHEN (OLD.ok <> NEW.ok OR OLD.findings <> NEW.findings) EXECUTE FUNCTION live_tell_address();

-- A VLAN shows to whoever sees its tenant; workers alone take and give them back.
ALTER TABLE tenants_vlan ENABLE ROW LEVEL SECURITY;
CREATE POLICY app_rule ON tenants_vlan TO cp_app
  USING ((SELECT app_sees_all()) OR tenant_id = ANY ((SELECT app_tenants())::uuid[])) WITH CHECK (false);
CREATE POLICY worker_rule ON tenants_vlan TO cp_worker USING (app_actor() <> '') WITH CHECK (app_actor() <> '');
REVOKE INSERT, UPDATE, DELETE ON tenants_vlan FROM cp_app;

-- However a boundary ends (its pass saw nothing of it left, or it was written off with its provider), its VLAN is free.
CREATE FUNCTION vlan_give_back() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
BEGIN
  DELETE FROM tenants_vlan WHERE boundary_id = NEW.id;
  RETURN NULL;
END $$;
CREATE TRIGGER vlan_given_back AFTER UPDATE OF released_at ON tenants_boundary
  FOR EACH ROW WHEN (OLD.released_at IS NULL AND NEW.released_at IS NOT NULL) EXECUTE FUNCTION vlan_give_back();

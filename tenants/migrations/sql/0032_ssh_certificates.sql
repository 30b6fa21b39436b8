-- Authorities and certificates show to whoever sees their tenant; the private keys are sealed.
ALTER TABLE tenants_sshauthority ENABLE ROW LEVEL SECURITY;
CREATE POLICY app_rule ON tenants_sshauthority TO cp_app
  USING ((SELECT app_sees_all()) OR tenant_id = ANY ((SELECT app_tenants())::uuid[]))
  WITH CHECK ((SELECT app_sees_all()) OR tenant_id = ANY ((SELECT app_tenants())::uuid[]));
CREATE POLICY worker_rule ON tenants_sshauthority TO cp_worker USING (app_actor() <> '') WITH CHECK (app_actor() <> '');
ALTER TABLE tenants_sshcertificate ENABLE ROW LEVEL SECURITY;
CREATE POLICY app_rule ON tenants_sshcertificate TO cp_app
  USING ((SELECT app_sees_all()) OR tenant_id = ANY ((SELECT app_tenants())::uuid[]))
  WITH CHECK ((SELECT app_sees_all()) OR tenant_id = ANY ((SELECT app_tenants())::uuid[]));
CREATE POLICY worker_rule ON tenants_sshcertificate TO cp_worker USING (app_actor() <> '') WITH CHECK (app_actor() <> '');

-- What a machine asks at each login, without a principal of its own: serials tell nobody anything.
CREATE FUNCTION ssh_revoked(p_authority uuid, p_now timestamptz) RETURNS SETOF bigint
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp AS $$
  SELECT c.serial FROM tenants_sshcertificate c JOIN tenants_machine m ON m.id = c.machine_id
  WHERE c.authority_id = p_authority AND c.expires_at > p_now
    AND (c.revoked_at IS NOT NULL OR m.deletion_requested_at IS NOT NULL OR tenant_suspension(c.tenant_id) IS NOT NULL)
  ORDER BY c.serial
$$;

-- What a gateway's certificate is made of. Secrets of providers are nobody's in a tenant; one function gives the one
-- sealed secret that a gateway's own provider names for certificates to the call that answers this gateway, and to none
-- else. It does not open without the master key, and what leaves for the gateway is a certificate of its tenant only.
CREATE FUNCTION gateway_certificate_secret(p_gateway uuid)
RETURNS TABLE (id uuid, name varchar, sealed bytea)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp AS $$
  SELECT c.id, c.name, c.sealed
  FROM tenants_gatewayreplica g
  JOIN tenants_boundary b ON b.id = g.boundary_id
  JOIN tenants_provider p ON p.id = b.provider_id
  JOIN tenants_providercredential c ON c.provider_id = p.id
   AND c.name = CASE p.config ->> 'certificates'
                  WHEN 'own-ca' THEN 'endpoint-authority' WHEN 'files' THEN 'endpoint-certificates' END
  WHERE g.id = p_gateway AND g.removed_at IS NULL AND app_actor() = 'agent:' || p_gateway
$$;

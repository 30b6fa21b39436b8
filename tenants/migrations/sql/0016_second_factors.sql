-- Who of some people has a second factor or a passkey: the fact alone, and only of those whom the caller sees.
CREATE FUNCTION people_with_factor(p_people uuid[]) RETURNS TABLE (person_id uuid)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp AS $$
  SELECT DISTINCT a.user_id FROM mfa_authenticator a
  WHERE a.user_id = ANY (p_people) AND a.type <> 'recovery_codes' AND (
    (SELECT app_sees_all()) OR a.user_id = (SELECT app_person()) OR EXISTS (
      SELECT 1 FROM tenants_membership m
      WHERE m.person_id = a.user_id AND m.tenant_id = ANY ((SELECT app_tenants())::uuid[])))
$$;

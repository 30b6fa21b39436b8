-- Who has a role on the platform sees every tenant without a list of them; he may ask for a credential of his own as well.
ALTER POLICY app_rule ON tenants_namespacecredential
  USING (person_id = (SELECT app_person()) AND ((SELECT app_sees_all()) OR tenant_id = ANY ((SELECT app_tenants())::uuid[])))
  WITH CHECK (person_id = (SELECT app_person())
    AND ((SELECT app_sees_all()) OR tenant_id = ANY ((SELECT app_tenants())::uuid[]))
    AND sealed IS NULL AND answered_at IS NULL);

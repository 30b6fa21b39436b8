-- Who may see a row need not be one who may write it. Without these an insert past every operation could make
-- oneself a member of any tenant, or an operator; and a child's people could change what they see of their parents.
DO $$
DECLARE
  entry record;
BEGIN
  FOR entry IN SELECT * FROM (VALUES
    ('tenants_membership',
     '(SELECT app_sees_all()) OR tenant_id = ANY ((SELECT app_tenants())::uuid[]) OR person_id = (SELECT app_person()) OR app_actor() = ''auth''',
     '(SELECT app_sees_all()) OR tenant_id = ANY ((SELECT app_tenants())::uuid[])'),
    ('tenants_platformmembership',
     '(SELECT app_sees_all()) OR person_id = (SELECT app_person()) OR app_actor() = ''auth''',
     '(SELECT app_sees_all())'),
    ('tenants_person',
     '(SELECT app_sees_all()) OR id = (SELECT app_person()) OR app_actor() = ''auth'' OR EXISTS (SELECT 1 FROM tenants_membership m WHERE m.person_id = tenants_person.id AND m.tenant_id = ANY ((SELECT app_tenants())::uuid[]))',
     '(SELECT app_sees_all()) OR id = (SELECT app_person())'),
    ('tenants_serviceaccount',
     '(SELECT app_sees_all()) OR tenant_id = ANY ((SELECT app_tenants())::uuid[]) OR app_actor() = ''auth''',
     '(SELECT app_sees_all()) OR tenant_id = ANY ((SELECT app_tenants())::uuid[])'),
    ('tenants_tenant',
     '(SELECT app_sees_all()) OR id = ANY ((SELECT app_tenants())::uuid[]) OR id = ANY ((SELECT app_ancestors())::uuid[]) OR parent_id = ANY ((SELECT app_tenants())::uuid[])',
     '(SELECT app_sees_all()) OR id = ANY ((SELECT app_tenants())::uuid[]) OR parent_id = ANY ((SELECT app_tenants())::uuid[])'),
    ('tenants_quota',
     '(SELECT app_sees_all()) OR tenant_id = ANY ((SELECT app_tenants())::uuid[]) OR tenant_id = ANY ((SELECT app_ancestors())::uuid[])',
     '(SELECT app_sees_all()) OR tenant_id = ANY ((SELECT app_tenants())::uuid[])'),
    ('tenants_autoapprovalrule', 'app_actor() <> ''''', '(SELECT app_sees_all())'),
    ('tenants_servedmodel', 'app_actor() <> ''''', '(SELECT app_sees_all())'),
    ('tenants_pricelist', 'app_actor() <> ''''', '(SELECT app_sees_all())'),
    ('tenants_price', 'app_actor() <> ''''', '(SELECT app_sees_all())')
  ) AS t(name, reads, writes)
  LOOP
    EXECUTE format('DROP POLICY app_rule ON %I', entry.name);
    EXECUTE format('CREATE POLICY app_reads ON %I FOR SELECT TO cp_app USING (%s)', entry.name, entry.reads);
    EXECUTE format('CREATE POLICY app_writes ON %I TO cp_app USING (%s) WITH CHECK (%s)', entry.name, entry.writes,
                   entry.writes);
  END LOOP;
END $$;

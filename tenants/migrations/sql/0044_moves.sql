-- Moves show like the endpoint that they are of.
ALTER TABLE tenants_move ENABLE ROW LEVEL SECURITY;
CREATE POLICY app_rule ON tenants_move TO cp_app
  USING ((SELECT app_sees_all()) OR tenant_id = ANY ((SELECT app_tenants())::uuid[]))
  WITH CHECK ((SELECT app_sees_all()) OR tenant_id = ANY ((SELECT app_tenants())::uuid[]));
CREATE POLICY worker_rule ON tenants_move TO cp_worker USING (app_actor() <> '') WITH CHECK (app_actor() <> '');

-- Two places of one endpoint change allocations in one statement: looked at when it ends, not row by row.
DO $$
DECLARE found text;
BEGIN
  SELECT conname INTO STRICT found FROM pg_constraint
   WHERE conrelid = 'tenants_endpoint'::regclass AND contype = 'u'
     AND conkey = (SELECT ARRAY[attnum] FROM pg_attribute
                    WHERE attrelid = 'tenants_endpoint'::regclass AND attname = 'allocation_id');
  EXECUTE format('ALTER TABLE tenants_endpoint DROP CONSTRAINT %I', found);
  EXECUTE format('ALTER TABLE tenants_endpoint ADD CONSTRAINT %I UNIQUE (allocation_id) DEFERRABLE INITIALLY IMMEDIATE',
                 found);
END $$;

-- Who sees notifications, webhooks and deliveries; what only workers write.
DO $$
DECLARE
  entry record;
  mine text := 'person_id = (SELECT app_person()) AND split_part(app_actor(), '':'', 1) = ''person''';
  tenants text := '(SELECT app_sees_all()) OR tenant_id = ANY ((SELECT app_tenants())::uuid[])';
BEGIN
  FOR entry IN SELECT * FROM (VALUES
    -- a bell is its person's alone: neither his service accounts nor an operator look into it
    ('tenants_notification', format('%s AND (tenant_id IS NULL OR %s)', mine, tenants)),
    ('tenants_notificationpreference', mine),
    ('tenants_webhook', tenants),
    ('tenants_delivery', format('(medium = ''webhook'' AND (%s)) OR (medium = ''mail'' AND %s)', tenants, mine)),
    ('tenants_deliveryattempt', 'EXISTS (SELECT 1 FROM tenants_delivery d WHERE d.id = delivery_id)'),
    ('tenants_fanoutcursor', 'false'),
    ('tenants_notificationmark', 'false')
  ) AS t(name, condition)
  LOOP
    EXECUTE format('ALTER TABLE %I ENABLE ROW LEVEL SECURITY', entry.name);
    EXECUTE format('CREATE POLICY app_rule ON %I TO cp_app USING (%s) WITH CHECK (%s)', entry.name, entry.condition,
                   entry.condition);
    EXECUTE format('CREATE POLICY worker_rule ON %I TO cp_worker USING (app_actor() <> '''') WITH CHECK (app_actor() <> '''')',
                   entry.name);
  END LOOP;
END $$;

-- Mail kept for the demo: anybody may put one in (a page sends it), only the demo's outbox page, which asks as
-- `auth`, and platform roles read.
ALTER TABLE tenants_outboxmail ENABLE ROW LEVEL SECURITY;
CREATE POLICY app_writes ON tenants_outboxmail FOR INSERT TO cp_app WITH CHECK (app_actor() <> '');
CREATE POLICY app_reads ON tenants_outboxmail FOR SELECT TO cp_app
  USING ((SELECT app_sees_all()) OR app_actor() = 'auth');
CREATE POLICY worker_rule ON tenants_outboxmail TO cp_worker USING (app_actor() <> '') WITH CHECK (app_actor() <> '');

REVOKE ALL ON tenants_fanoutcursor, tenants_notificationmark FROM cp_app;
REVOKE INSERT, DELETE ON tenants_notification FROM cp_app;
REVOKE DELETE ON tenants_webhook, tenants_delivery, tenants_outboxmail FROM cp_app;
REVOKE INSERT, UPDATE, DELETE ON tenants_deliveryattempt FROM cp_app;
REVOKE UPDATE ON tenants_outboxmail FROM cp_app;

-- What happened before this release is nobody's news.
INSERT INTO tenants_fanoutcursor (chain, seq) SELECT chain, seq FROM tenants_chainhead;

-- Row-level security. cp_app (web) sees what the actor set by the transaction helper may see; cp_worker sees
-- all once an actor is set; without `app.actor` nothing shows to either. cp_owner owns the tables.
DO $$
DECLARE missing text;
BEGIN
  SELECT string_agg(name, ', ') INTO missing FROM unnest(ARRAY['cp_app', 'cp_worker']) AS name
  WHERE NOT EXISTS (SELECT 1 FROM pg_roles WHERE rolname = name);
  IF missing IS NOT NULL THEN
    RAISE EXCEPTION 'database role(s) % missing: create them as README "Run for real" shows', missing;
  END IF;
END $$;

GRANT USAGE ON SCHEMA public TO cp_app, cp_worker;
GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO cp_app, cp_worker;
GRANT USAGE, SELECT ON ALL SEQUENCES IN SCHEMA public TO cp_app, cp_worker;
ALTER DEFAULT PRIVILEGES IN SCHEMA public GRANT SELECT, INSERT, UPDATE, DELETE ON TABLES TO cp_app, cp_worker;
ALTER DEFAULT PRIVILEGES IN SCHEMA public GRANT USAGE, SELECT ON SEQUENCES TO cp_app, cp_worker;

-- Written by functions only.
REVOKE INSERT, UPDATE, DELETE ON tenants_event, tenants_chainhead, tenants_checkpoint, tenants_hold
  FROM cp_app, cp_worker;
REVOKE INSERT, DELETE ON tenants_usagerecord FROM cp_app, cp_worker;
REVOKE INSERT, UPDATE, DELETE ON django_migrations FROM cp_app, cp_worker;
REVOKE SELECT, UPDATE, DELETE, INSERT ON tenants_outbox FROM cp_app;

CREATE INDEX tenant_path_gin ON tenants_tenant USING gin (path);

-- A decision repeats its request's requester; the CHECK decision_not_own compares it with the decider.
ALTER TABLE tenants_decision ADD CONSTRAINT decision_requester_fk
  FOREIGN KEY (request_id, requester_id) REFERENCES tenants_request (id, requester_id);

CREATE FUNCTION app_actor() RETURNS text LANGUAGE sql STABLE AS
  $$ SELECT coalesce(current_setting('app.actor', true), '') $$;
CREATE FUNCTION app_sees_all() RETURNS boolean LANGUAGE sql STABLE AS
  $$ SELECT coalesce(current_setting('app.sees_all', true), '') = 'on' $$;
CREATE FUNCTION app_tenants() RETURNS uuid[] LANGUAGE sql STABLE AS
  $$ SELECT coalesce(nullif(current_setting('app.tenants', true), ''), '{}')::uuid[] $$;
CREATE FUNCTION app_ancestors() RETURNS uuid[] LANGUAGE sql STABLE AS
  $$ SELECT coalesce(nullif(current_setting('app.ancestors', true), ''), '{}')::uuid[] $$;
CREATE FUNCTION app_person() RETURNS uuid LANGUAGE sql STABLE AS
  $$ SELECT nullif(current_setting('app.person', true), '')::uuid $$;

-- Works out what `app.actor` may see and keeps it for the transaction. The actor's words:
-- person:<id>, service-account:<id>, agent:<id>, auth (looks up principals), anonymous, system (cp_worker).
CREATE FUNCTION app_enter() RETURNS boolean
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
  word text := split_part(app_actor(), ':', 1);
  principal uuid := nullif(split_part(app_actor(), ':', 2), '')::uuid;
  sees_all boolean := false;
  direct uuid[] := '{}';
  visible uuid[] := '{}';
  above uuid[] := '{}';
  person uuid;
BEGIN
  IF word = 'person' THEN
    SELECT p.id INTO person FROM tenants_person p WHERE p.id = principal AND p.is_active;
    IF person IS NOT NULL THEN
      sees_all := EXISTS (SELECT 1 FROM tenants_platformmembership m WHERE m.person_id = person);
      SELECT coalesce(array_agg(m.tenant_id), '{}') INTO direct FROM tenants_membership m WHERE m.person_id = person;
    END IF;
  ELSIF word = 'service-account' THEN
    SELECT s.owner_id, ARRAY[s.tenant_id] INTO person, direct FROM tenants_serviceaccount s
      JOIN tenants_person p ON p.id = s.owner_id
      WHERE s.id = principal AND s.disabled_at IS NULL AND (s.expires_at IS NULL OR s.expires_at > now());
    direct := coalesce(direct, '{}');
  ELSIF word = 'agent' THEN
    SELECT ARRAY[g.tenant_id] INTO visible FROM tenants_gatewayreplica g WHERE g.id = principal AND g.removed_at IS NULL;
    visible := coalesce(visible, '{}');
  END IF;
  IF direct <> '{}' AND NOT sees_all THEN
    SELECT coalesce(array_agg(t.id), '{}') INTO visible FROM tenants_tenant t WHERE t.path && direct;
    SELECT coalesce(array_agg(DISTINCT a.id), '{}') INTO above
      FROM tenants_tenant t, unnest(t.path) AS a(id) WHERE t.id = ANY (direct) AND a.id <> ALL (visible);
  END IF;
  PERFORM set_config('app.sees_all', CASE WHEN sees_all THEN 'on' ELSE 'off' END, true),
          set_config('app.tenants', visible::text, true),
          set_config('app.ancestors', above::text, true),
          set_config('app.person', coalesce(person::text, ''), true);
  RETURN true;
END $$;

DO $$
DECLARE
  entry record;
  rule text;
BEGIN
  FOR entry IN SELECT * FROM (VALUES
    -- tables with a tenant of their own
    ('tenants_boundary', 'tenant'), ('tenants_allocation', 'tenant'), ('tenants_unit', 'tenant'),
    ('tenants_quotacharge', 'tenant'), ('tenants_endpoint', 'tenant'), ('tenants_endpointkey', 'tenant'),
    ('tenants_revision', 'tenant'), ('tenants_machine', 'tenant'), ('tenants_namespace', 'tenant'),
    ('tenants_gatewayreplica', 'tenant'), ('tenants_gatewayusage', 'tenant'), ('tenants_notice', 'tenant'),
    ('tenants_usagerecord', 'tenant'), ('tenants_hold', 'tenant'), ('tenants_intent', 'tenant'),
    ('tenants_suspension', 'tenant'), ('tenants_event', 'tenant'),
    -- the others, by a rule of their own
    ('tenants_tenant', '(SELECT app_sees_all()) OR id = ANY ((SELECT app_tenants())::uuid[]) OR id = ANY ((SELECT app_ancestors())::uuid[]) OR parent_id = ANY ((SELECT app_tenants())::uuid[])'),
    ('tenants_quota', '(SELECT app_sees_all()) OR tenant_id = ANY ((SELECT app_tenants())::uuid[]) OR tenant_id = ANY ((SELECT app_ancestors())::uuid[])'),
    ('tenants_membership', '(SELECT app_sees_all()) OR tenant_id = ANY ((SELECT app_tenants())::uuid[]) OR person_id = (SELECT app_person()) OR app_actor() = ''auth'''),
    ('tenants_serviceaccount', '(SELECT app_sees_all()) OR tenant_id = ANY ((SELECT app_tenants())::uuid[]) OR app_actor() = ''auth'''),
    ('tenants_apitoken', '(SELECT app_sees_all()) OR tenant_id = ANY ((SELECT app_tenants())::uuid[]) OR person_id = (SELECT app_person()) OR app_actor() = ''auth'''),
    ('tenants_person', '(SELECT app_sees_all()) OR id = (SELECT app_person()) OR app_actor() = ''auth'' OR EXISTS (SELECT 1 FROM tenants_membership m WHERE m.person_id = tenants_person.id AND m.tenant_id = ANY ((SELECT app_tenants())::uuid[]))'),
    ('tenants_platformmembership', '(SELECT app_sees_all()) OR person_id = (SELECT app_person()) OR app_actor() = ''auth'''),
    ('tenants_request', '(SELECT app_sees_all()) OR tenant_id = ANY ((SELECT app_tenants())::uuid[]) OR requester_id = (SELECT app_person())'),
    ('tenants_requeststage', 'EXISTS (SELECT 1 FROM tenants_request r WHERE r.id = request_id)'),
    ('tenants_requestcomment', 'EXISTS (SELECT 1 FROM tenants_request r WHERE r.id = request_id)'),
    ('tenants_decision', 'EXISTS (SELECT 1 FROM tenants_request r WHERE r.id = request_id)'),
    ('tenants_delegation', '(SELECT app_sees_all()) OR person_id = (SELECT app_person()) OR delegate_id = (SELECT app_person())'),
    ('tenants_chainhead', '(SELECT app_sees_all()) OR chain = ANY ((SELECT app_tenants())::uuid[])'),
    ('tenants_checkpoint', '(SELECT app_sees_all())'),
    ('tenants_providercredential', '(SELECT app_sees_all())'),
    ('tenants_finding', '(SELECT app_sees_all())'),
    ('tenants_hostplan', '(SELECT app_sees_all())'),
    ('tenants_idempotencyrecord', 'principal = app_actor()'),
    ('tenants_provider', 'app_actor() <> '''''), ('tenants_host', 'app_actor() <> '''''),
    ('tenants_gpudevice', 'app_actor() <> '''''), ('tenants_migdevice', 'app_actor() <> '''''),
    ('tenants_servedmodel', 'app_actor() <> '''''), ('tenants_pricelist', 'app_actor() <> '''''),
    ('tenants_price', 'app_actor() <> '''''), ('tenants_autoapprovalrule', 'app_actor() <> '''''),
    ('tenants_outbox', 'false')
  ) AS t(name, condition)
  LOOP
    rule := CASE entry.condition
      WHEN 'tenant' THEN '(SELECT app_sees_all()) OR tenant_id = ANY ((SELECT app_tenants())::uuid[])'
      ELSE entry.condition END;
    EXECUTE format('ALTER TABLE %I ENABLE ROW LEVEL SECURITY', entry.name);
    EXECUTE format('CREATE POLICY app_rule ON %I TO cp_app USING (%s) WITH CHECK (%s)', entry.name, rule, rule);
    EXECUTE format('CREATE POLICY worker_rule ON %I TO cp_worker USING (app_actor() <> '''') WITH CHECK (app_actor() <> '''')',
                   entry.name);
  END LOOP;
END $$;

-- Locks a tenant and its ancestors, root first: the first lock of every operation that spends quota.
CREATE FUNCTION tenant_lock_path(p_tenant uuid)
RETURNS TABLE (id uuid, name varchar, status varchar, policy jsonb, depth int)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
  chain uuid[];
  step uuid;
  at int := 0;
BEGIN
  SELECT t.path INTO chain FROM tenants_tenant t WHERE t.id = p_tenant;
  FOREACH step IN ARRAY coalesce(chain, '{}') LOOP
    RETURN QUERY SELECT t.id, t.name, t.status, t.policy, at FROM tenants_tenant t WHERE t.id = step
      FOR NO KEY UPDATE;
    at := at + 1;
  END LOOP;
END $$;

-- Limits and use of a tenant and its ancestors; use is summed over each one's whole subtree.
CREATE FUNCTION quota_position(p_tenant uuid, p_dimensions text[])
RETURNS TABLE (tenant_id uuid, depth int, dimension text, amount bigint, inherit boolean, until timestamptz,
               used bigint, pending bigint)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp AS $$
  SELECT a.id, a.depth::int - 1, d.name, q.amount, q.inherit, q.until,
         coalesce(u.used, 0)::bigint, coalesce(u.pending, 0)::bigint
  FROM tenants_tenant t
  CROSS JOIN LATERAL unnest(t.path) WITH ORDINALITY AS a(id, depth)
  CROSS JOIN unnest(p_dimensions) AS d(name)
  LEFT JOIN tenants_quota q ON q.tenant_id = a.id AND q.dimension = d.name
  LEFT JOIN LATERAL (
    SELECT sum(c.amount) FILTER (WHERE NOT c.pending) AS used, sum(c.amount) FILTER (WHERE c.pending) AS pending
    FROM tenants_tenant s JOIN tenants_quotacharge c ON c.tenant_id = s.id AND c.dimension = d.name
    WHERE s.path @> ARRAY[a.id]
  ) u ON true
  WHERE t.id = p_tenant
$$;

-- Who asks to join names a tenant that he cannot see yet.
CREATE FUNCTION tenant_for_join(p_name text) RETURNS uuid
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp AS
  $$ SELECT id FROM tenants_tenant WHERE name = p_name AND status = 'active' $$;

-- Appends one event to its chain. The hash covers every field, so nothing can be changed, dropped or swapped
-- without `audit verify` seeing it. The head row is the last lock of a transaction.
CREATE FUNCTION event_append(p_chain uuid, p_at timestamptz, p_tenant uuid, p_kind text, p_object_kind text,
                             p_object uuid, p_actor text, p_person uuid, p_data jsonb) RETURNS bigint
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
  head record;
  new_hash text;
BEGIN
  INSERT INTO tenants_chainhead (chain, seq, hash) VALUES (p_chain, 0, repeat('0', 64)) ON CONFLICT DO NOTHING;
  SELECT seq, hash INTO head FROM tenants_chainhead WHERE chain = p_chain FOR UPDATE;
  new_hash := event_hash(head.hash, p_chain, head.seq + 1, p_at, p_tenant, p_kind, p_object_kind, p_object,
                         p_actor, p_person, p_data);
  INSERT INTO tenants_event (id, chain, seq, at, tenant_id, kind, object_kind, object_id, actor, person_id, data,
                             previous, hash)
  VALUES (gen_random_uuid(), p_chain, head.seq + 1, p_at, p_tenant, p_kind, p_object_kind, p_object, p_actor,
          p_person, p_data, head.hash, new_hash);
  UPDATE tenants_chainhead SET seq = head.seq + 1, hash = new_hash WHERE chain = p_chain;
  RETURN head.seq + 1;
END $$;

CREATE FUNCTION event_hash(p_previous text, p_chain uuid, p_seq bigint, p_at timestamptz, p_tenant uuid, p_kind text,
                           p_object_kind text, p_object uuid, p_actor text, p_person uuid, p_data jsonb) RETURNS text
LANGUAGE sql IMMUTABLE AS $$
  SELECT encode(sha256(convert_to(concat_ws(chr(31), p_previous, p_chain::text, p_seq::text,
    (extract(epoch FROM p_at) * 1000000)::bigint::text, coalesce(p_tenant::text, '-'), p_kind, p_object_kind,
    coalesce(p_object::text, '-'), p_actor, coalesce(p_person::text, '-'), p_data::text), 'UTF8')), 'hex')
$$;

-- Says that an object has news: one row per object, so a burst is one nudge.
CREATE FUNCTION outbox_put(p_kind text, p_object uuid, p_tenant uuid, p_at timestamptz) RETURNS void
LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp AS $$
  INSERT INTO tenants_outbox AS o (object_id, object_kind, tenant_id, seq, at, attempts)
  VALUES (p_object, p_kind, p_tenant, 1, p_at, 0)
  ON CONFLICT (object_id) DO UPDATE SET seq = o.seq + 1, at = excluded.at, published_at = NULL
$$;

CREATE FUNCTION checkpoint_write(p_at timestamptz) RETURNS text
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
  all_heads jsonb;
  before text;
  new_hash text;
BEGIN
  LOCK TABLE tenants_checkpoint IN SHARE ROW EXCLUSIVE MODE;
  SELECT coalesce(jsonb_object_agg(chain::text, jsonb_build_array(seq, hash)), '{}') INTO all_heads FROM tenants_chainhead;
  SELECT hash INTO before FROM tenants_checkpoint ORDER BY at DESC LIMIT 1;
  before := coalesce(before, repeat('0', 64));
  new_hash := encode(sha256(convert_to(before || chr(31) || (extract(epoch FROM p_at) * 1000000)::bigint::text
              || chr(31) || all_heads::text, 'UTF8')), 'hex');
  INSERT INTO tenants_checkpoint (id, at, heads, previous, hash) VALUES (gen_random_uuid(), p_at, all_heads, before, new_hash)
    ON CONFLICT (at) DO NOTHING;
  RETURN new_hash;
END $$;

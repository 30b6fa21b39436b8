-- Links to accounts, and who may see what the log-in library keeps about people: his own, and the look-up `auth`.
ALTER TABLE tenants_accountlink ENABLE ROW LEVEL SECURITY;
CREATE POLICY app_reads ON tenants_accountlink FOR SELECT TO cp_app
  USING ((SELECT app_sees_all()) OR tenant_id = ANY ((SELECT app_tenants())::uuid[]));
CREATE POLICY app_writes ON tenants_accountlink TO cp_app
  USING ((SELECT app_sees_all()) OR tenant_id = ANY ((SELECT app_tenants())::uuid[]))
  WITH CHECK ((SELECT app_sees_all()) OR tenant_id = ANY ((SELECT app_tenants())::uuid[]));
CREATE POLICY worker_rule ON tenants_accountlink TO cp_worker
  USING (app_actor() <> '') WITH CHECK (app_actor() <> '');

DO $$
DECLARE
  entry record;
BEGIN
  FOR entry IN SELECT * FROM (VALUES
    ('mfa_authenticator', 'user_id'), ('usersessions_usersession', 'user_id'), ('account_emailaddress', 'user_id'),
    ('socialaccount_socialaccount', 'user_id')
  ) AS t(name, owner)
  LOOP
    EXECUTE format('ALTER TABLE %I ENABLE ROW LEVEL SECURITY', entry.name);
    EXECUTE format('CREATE POLICY app_rule ON %I TO cp_app USING (%I = (SELECT app_person()) OR app_actor() = ''auth'')',
                   entry.name, entry.owner);
    EXECUTE format('CREATE POLICY worker_rule ON %I TO cp_worker USING (app_actor() <> '''')', entry.name);
  END LOOP;
  -- Never written: addresses are the persons' own, identity providers come from settings, their tokens are not kept.
  FOR entry IN SELECT unnest(ARRAY['account_emailconfirmation', 'socialaccount_socialapp', 'socialaccount_socialtoken'])
    AS name
  LOOP
    EXECUTE format('REVOKE INSERT, UPDATE ON %I FROM cp_app, cp_worker', entry.name);
  END LOOP;
END $$;

-- Counts of attempts and other things that may be forgotten, shared by all web processes (Django's DatabaseCache).
CREATE TABLE tenants_cache (
  cache_key varchar(255) PRIMARY KEY,
  value text NOT NULL,
  expires timestamptz NOT NULL
);
CREATE INDEX tenants_cache_expires ON tenants_cache (expires);

-- What a link is worth now: open, used, withdrawn, expired, void (what it was made for does not hold any more).
CREATE FUNCTION account_link_state(link tenants_accountlink, p_now timestamptz) RETURNS text
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = public, pg_temp AS $$
BEGIN
  IF link.used_at IS NOT NULL THEN RETURN 'used'; END IF;
  IF link.withdrawn_at IS NOT NULL THEN RETURN 'withdrawn'; END IF;
  IF link.expires_at <= p_now THEN RETURN 'expired'; END IF;
  IF link.created_by_id IS NOT NULL AND NOT EXISTS (
    SELECT 1 FROM tenants_person p WHERE p.id = link.created_by_id AND p.is_active AND (
      EXISTS (SELECT 1 FROM tenants_platformmembership o WHERE o.person_id = p.id AND o.role = 'operator')
      OR EXISTS (SELECT 1 FROM tenants_tenant t JOIN tenants_membership m ON m.tenant_id = ANY (t.path)
                 WHERE t.id = link.tenant_id AND m.person_id = p.id AND m.role = 3))
  ) THEN RETURN 'void'; END IF;
  IF link.kind = 'invitation' AND NOT EXISTS (
    SELECT 1 FROM tenants_tenant t WHERE t.id = link.tenant_id AND t.status = 'active'
  ) THEN RETURN 'void'; END IF;
  IF link.kind = 'recovery' AND NOT EXISTS (
    SELECT 1 FROM tenants_person p WHERE p.id = link.person_id AND p.is_active
  ) THEN RETURN 'void'; END IF;
  IF link.kind = 'set-up' AND EXISTS (
    SELECT 1 FROM tenants_platformmembership o JOIN tenants_person p ON p.id = o.person_id AND p.is_active
    WHERE o.role = 'operator'
  ) THEN RETURN 'void'; END IF;
  RETURN 'open';
END $$;

-- What the holder of a link may know of it. Nothing shows without the digest of its secret.
CREATE FUNCTION account_link_look(p_digest bytea, p_now timestamptz)
RETURNS TABLE (id uuid, kind text, state text, email text, person_id uuid, tenant_id uuid, tenant_name text,
               tenant_title text, role int, forget_factors boolean, expires_at timestamptz, account_there boolean)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp AS $$
  SELECT l.id, l.kind, account_link_state(l, p_now), coalesce(nullif(l.email, ''), p.email, ''), l.person_id,
         l.tenant_id, t.name, t.display_name, l.role::int, l.forget_factors, l.expires_at,
         EXISTS (SELECT 1 FROM tenants_person o WHERE lower(o.email) = lower(l.email))
  FROM tenants_accountlink l
  LEFT JOIN tenants_tenant t ON t.id = l.tenant_id
  LEFT JOIN tenants_person p ON p.id = l.person_id
  WHERE l.digest = p_digest
$$;

-- Uses a link up. As a person: an invitation to his own e-mail makes him a member, a recovery of his own is his.
-- As `auth`: an account is made first, for the e-mail of the invitation (of the set-up: the one given). No row: the
-- link is not open, or is not his. The tenant's path is locked before the link, as everywhere.
CREATE FUNCTION account_link_accept(p_digest bytea, p_now timestamptz, p_email text, p_name text, p_password text)
RETURNS TABLE (link_id uuid, kind text, used_by uuid, membership uuid, tenant_id uuid, role int, forget_factors boolean)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp AS $$
#variable_conflict use_column
DECLARE
  link tenants_accountlink;
  who uuid := app_person();
  is_new boolean := app_actor() = 'auth';
  joined uuid;
BEGIN
  SELECT * INTO link FROM tenants_accountlink l WHERE l.digest = p_digest;
  IF NOT FOUND OR (who IS NULL AND NOT is_new) THEN RETURN; END IF;
  IF link.tenant_id IS NOT NULL THEN PERFORM tenant_lock_path(link.tenant_id); END IF;
  IF link.kind = 'set-up' THEN PERFORM pg_advisory_xact_lock(hashtext('tenantry first set-up')); END IF;
  SELECT * INTO link FROM tenants_accountlink l WHERE l.digest = p_digest FOR UPDATE;
  IF account_link_state(link, p_now) <> 'open' THEN RETURN; END IF;
  IF is_new THEN
    IF link.kind = 'recovery' THEN RETURN; END IF;
    INSERT INTO tenants_person (id, email, display_name, password, created_at, is_active)
    VALUES (gen_random_uuid(), CASE link.kind WHEN 'invitation' THEN link.email ELSE p_email END, p_name, p_password,
            p_now, true)
    RETURNING tenants_person.id INTO who;
  ELSIF link.kind = 'invitation' THEN
    IF NOT EXISTS (SELECT 1 FROM tenants_person p WHERE p.id = who AND lower(p.email) = lower(link.email)) THEN
      RETURN;
    END IF;
  ELSIF link.kind = 'set-up' OR link.person_id <> who THEN
    RETURN;
  END IF;
  IF link.kind = 'invitation' THEN
    INSERT INTO tenants_membership (id, tenant_id, person_id, role, created_at, version)
    VALUES (gen_random_uuid(), link.tenant_id, who, link.role, p_now, 1) ON CONFLICT DO NOTHING
    RETURNING tenants_membership.id INTO joined;
  ELSIF link.kind = 'set-up' THEN
    INSERT INTO tenants_platformmembership (id, person_id, role, created_at)
    VALUES (gen_random_uuid(), who, 'operator', p_now);
  END IF;
  UPDATE tenants_accountlink l SET used_at = p_now, used_by_id = who WHERE l.id = link.id;
  RETURN QUERY SELECT link.id, link.kind::text, who, joined, link.tenant_id, link.role::int, link.forget_factors;
END $$;

-- Forgets what the log-in library and links know of somebody whose name is erased.
CREATE FUNCTION account_forget(p_person uuid) RETURNS void
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
  known text;
BEGIN
  SELECT p.email INTO known FROM tenants_person p WHERE p.id = p_person AND p.left_at IS NOT NULL FOR UPDATE;
  IF NOT FOUND THEN RETURN; END IF;
  DELETE FROM mfa_authenticator WHERE user_id = p_person;
  DELETE FROM usersessions_usersession WHERE user_id = p_person;
  DELETE FROM socialaccount_socialaccount WHERE user_id = p_person;
  DELETE FROM account_emailaddress WHERE user_id = p_person;
  UPDATE tenants_accountlink l SET email = 'erased-' || p_person || '@erased.invalid' WHERE lower(l.email) = lower(known);
END $$;

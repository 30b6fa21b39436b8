-- The roll-up of usage shows like the usage itself. Workers write it; what changed is noted by triggers, in the
-- transaction of the change, so that nobody takes a sum for newer than it is.
DO $$
DECLARE
  rule text := '(SELECT app_sees_all()) OR tenant_id = ANY ((SELECT app_tenants())::uuid[])';
  name text;
BEGIN
  FOREACH name IN ARRAY ARRAY['tenants_usagerollup', 'tenants_usageday', 'tenants_usagestanding', 'tenants_usagechange']
  LOOP
    EXECUTE format('ALTER TABLE %I ENABLE ROW LEVEL SECURITY', name);
    EXECUTE format('CREATE POLICY app_rule ON %I FOR SELECT TO cp_app USING (%s)', name, rule);
    EXECUTE format('CREATE POLICY worker_rule ON %I TO cp_worker USING (app_actor() <> '''') WITH CHECK (app_actor() <> '''')',
                   name);
    EXECUTE format('REVOKE INSERT, UPDATE, DELETE ON %I FROM cp_app', name);
    EXECUTE format('GRANT SELECT, INSERT, UPDATE, DELETE ON %I TO cp_worker', name);
  END LOOP;
END $$;

-- From when on what a usage record bills is another than before: where it begins, where it ends, or all of it.
-- A record bills over [later of held and billable from, earlier of held and billable to); one that never does is NULL.
CREATE FUNCTION usage_record_noted() RETURNS trigger
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
  old_from timestamptz;
  old_to timestamptz;
  new_from timestamptz;
  new_to timestamptz;
  since timestamptz;
BEGIN
  IF TG_OP <> 'INSERT' AND OLD.billable_from IS NOT NULL AND OLD.allocation_id IS NOT NULL AND OLD.tenant_id IS NOT NULL
  THEN
    old_from := greatest(OLD.held_from, OLD.billable_from);
    old_to := coalesce(least(OLD.held_to, OLD.billable_to), 'infinity');
    IF old_to <= old_from THEN old_from := NULL; END IF;
  END IF;
  IF TG_OP <> 'DELETE' AND NEW.billable_from IS NOT NULL AND NEW.allocation_id IS NOT NULL AND NEW.tenant_id IS NOT NULL
  THEN
    new_from := greatest(NEW.held_from, NEW.billable_from);
    new_to := coalesce(least(NEW.held_to, NEW.billable_to), 'infinity');
    IF new_to <= new_from THEN new_from := NULL; END IF;
  END IF;
  IF old_from IS NOT NULL AND new_from IS NOT NULL
    AND (OLD.tenant_id, OLD.provider_id, OLD.allocation_id, OLD.device_id, OLD.size, OLD.unit_id)
        IS NOT DISTINCT FROM
        (NEW.tenant_id, NEW.provider_id, NEW.allocation_id, NEW.device_id, NEW.size, NEW.unit_id)
  THEN
    since := least(CASE WHEN old_from <> new_from THEN least(old_from, new_from) END,
                   CASE WHEN old_to <> new_to THEN least(old_to, new_to) END);
    IF since IS NOT NULL THEN
      INSERT INTO tenants_usagechange (tenant_id, allocation_id, at) VALUES (NEW.tenant_id, NEW.allocation_id, since);
    END IF;
    RETURN NULL;
  END IF;
  IF old_from IS NOT NULL THEN
    INSERT INTO tenants_usagechange (tenant_id, allocation_id, at) VALUES (OLD.tenant_id, OLD.allocation_id, old_from);
  END IF;
  IF new_from IS NOT NULL THEN
    INSERT INTO tenants_usagechange (tenant_id, allocation_id, at) VALUES (NEW.tenant_id, NEW.allocation_id, new_from);
  END IF;
  RETURN NULL;
END $$;

CREATE TRIGGER usage_noted_insert AFTER INSERT ON tenants_usagerecord FOR EACH ROW
  WHEN (NEW.billable_from IS NOT NULL) EXECUTE FUNCTION usage_record_noted();
CREATE TRIGGER usage_noted_update AFTER UPDATE ON tenants_usagerecord FOR EACH ROW
  WHEN (OLD.billable_from IS NOT NULL OR NEW.billable_from IS NOT NULL) EXECUTE FUNCTION usage_record_noted();
CREATE TRIGGER usage_noted_delete AFTER DELETE ON tenants_usagerecord FOR EACH ROW
  WHEN (OLD.billable_from IS NOT NULL) EXECUTE FUNCTION usage_record_noted();

-- Tokens of an hour that is over, or that the roll-up has passed; those of the present hour are summed when asked for.
CREATE FUNCTION endpoint_usage_noted() RETURNS trigger
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
  row tenants_endpointusage;
BEGIN
  FOREACH row IN ARRAY CASE TG_OP WHEN 'INSERT' THEN ARRAY[NEW] WHEN 'DELETE' THEN ARRAY[OLD] ELSE ARRAY[OLD, NEW] END
  LOOP
    IF row.hour < now() - interval '1 hour'
      OR EXISTS (SELECT 1 FROM tenants_usagerollup r WHERE r.tenant_id = row.tenant_id AND r.through > row.hour)
    THEN
      INSERT INTO tenants_usagechange (tenant_id, allocation_id, at) VALUES (row.tenant_id, NULL, row.hour);
    END IF;
  END LOOP;
  RETURN NULL;
END $$;

CREATE TRIGGER usage_noted AFTER INSERT OR DELETE ON tenants_endpointusage FOR EACH ROW
  EXECUTE FUNCTION endpoint_usage_noted();
CREATE TRIGGER usage_noted_update AFTER UPDATE ON tenants_endpointusage FOR EACH ROW
  WHEN ((OLD.tenant_id, OLD.endpoint_id, OLD.hour, OLD.prompt_tokens, OLD.completion_tokens) IS DISTINCT FROM
        (NEW.tenant_id, NEW.endpoint_id, NEW.hour, NEW.prompt_tokens, NEW.completion_tokens))
  EXECUTE FUNCTION endpoint_usage_noted();

-- Whether a roll-up misses nothing of its time. What begins or ends just at `through` is told apart there from what goes
-- on, so a change at that very moment counts as one before it; tokens belong to the hour in which they are counted.
CREATE FUNCTION usage_is_whole(r tenants_usagerollup) RETURNS boolean LANGUAGE sql STABLE AS $$
  SELECT NOT EXISTS (SELECT FROM tenants_usagechange c WHERE c.tenant_id = r.tenant_id
    AND (c.at < r.through OR (c.at = r.through AND c.allocation_id IS NOT NULL)))
$$;

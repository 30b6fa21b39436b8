-- Tells live pages what changed: `<kind> <object> <tenant>` on the channel tenantry_live, delivered at commit.
-- Only for what pages show, and only when it really differs: a pass that finds nothing new says nothing.
CREATE FUNCTION live_tell() RETURNS trigger
LANGUAGE plpgsql SET search_path = public, pg_temp AS $$
BEGIN
  PERFORM pg_notify('tenantry_live', concat_ws(' ', TG_ARGV[0], NEW.id, NEW.tenant_id));
  RETURN NULL;
END $$;

-- A step belongs to an object; the page of the object shows it.
CREATE FUNCTION live_tell_step() RETURNS trigger
LANGUAGE plpgsql SET search_path = public, pg_temp AS $$
BEGIN
  PERFORM pg_notify('tenantry_live', concat_ws(' ', NEW.object_kind, NEW.object_id, NEW.tenant_id));
  RETURN NULL;
END $$;

DO $$
DECLARE kind text;
BEGIN
  FOREACH kind IN ARRAY ARRAY['endpoint', 'machine', 'namespace', 'boundary'] LOOP
    EXECUTE format(
      'CREATE TRIGGER live AFTER UPDATE ON %I FOR EACH ROW WHEN (OLD.phase IS DISTINCT FROM NEW.phase '
      'OR OLD.conditions IS DISTINCT FROM NEW.conditions OR OLD.generation <> NEW.generation '
      'OR OLD.released_at IS DISTINCT FROM NEW.released_at) EXECUTE FUNCTION live_tell(%L)',
      'tenants_' || kind, kind);
  END LOOP;
END $$;
CREATE TRIGGER live AFTER UPDATE ON tenants_request FOR EACH ROW
  WHEN (OLD.state IS DISTINCT FROM NEW.state OR OLD.version <> NEW.version) EXECUTE FUNCTION live_tell('request');
CREATE TRIGGER live AFTER INSERT ON tenants_intent FOR EACH ROW EXECUTE FUNCTION live_tell_step();
CREATE TRIGGER live_end AFTER UPDATE ON tenants_intent FOR EACH ROW
  WHEN (OLD.settled_at IS DISTINCT FROM NEW.settled_at) EXECUTE FUNCTION live_tell_step();

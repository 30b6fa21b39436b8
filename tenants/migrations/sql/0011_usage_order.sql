-- A window's history has no overlaps, whatever the clocks say: who claims took the time before he had the host's lock,
-- and who released it before him may have had a later one. A record begins no earlier than the last one ended.
CREATE FUNCTION usage_after_last() RETURNS trigger
LANGUAGE plpgsql VOLATILE SET search_path = public, pg_temp AS $$
BEGIN
  NEW.held_from := greatest(NEW.held_from, (
    SELECT max(r.held_to) FROM tenants_usagerecord r
    WHERE r.device_id = NEW.device_id AND r.held_to > NEW.held_from
      AND r.start < NEW.start + NEW.size AND NEW.start < r.start + r.size));
  NEW.held_to := greatest(NEW.held_to, CASE WHEN NEW.held_to IS NOT NULL THEN NEW.held_from END);
  RETURN NEW;
END $$;

CREATE TRIGGER usage_after_last BEFORE INSERT ON tenants_usagerecord
  FOR EACH ROW EXECUTE FUNCTION usage_after_last();

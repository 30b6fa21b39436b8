-- Sizes that units had. They show like the usage that is counted by them; nobody writes them but ledger_resize.
ALTER TABLE tenants_unitsize ENABLE ROW LEVEL SECURITY;
CREATE POLICY app_rule ON tenants_unitsize FOR SELECT TO cp_app
  USING ((SELECT app_sees_all()) OR tenant_id = ANY ((SELECT app_tenants())::uuid[]));
CREATE POLICY worker_rule ON tenants_unitsize TO cp_worker USING (app_actor() <> '') WITH CHECK (app_actor() <> '');
REVOKE INSERT, UPDATE, DELETE ON tenants_unitsize FROM cp_app, cp_worker;

-- From then on something else is billed, so the roll-up must hear of it, in the transaction of the change.
CREATE FUNCTION unit_size_noted() RETURNS trigger
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp AS $$
BEGIN
  INSERT INTO tenants_usagechange (tenant_id, allocation_id, at) VALUES (NEW.tenant_id, NEW.allocation_id, NEW.until);
  RETURN NULL;
END $$;
CREATE TRIGGER usage_noted AFTER INSERT ON tenants_unitsize FOR EACH ROW EXECUTE FUNCTION unit_size_noted();

-- What was billed by a size stays so.
CREATE FUNCTION unit_size_kept() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  RAISE EXCEPTION 'a size that a unit had cannot change any more' USING ERRCODE = 'check_violation';
END $$;
CREATE TRIGGER unit_size_stays BEFORE UPDATE OR DELETE ON tenants_unitsize FOR EACH ROW EXECUTE FUNCTION unit_size_kept();

-- A unit gets another size only with its former one kept: else all that it used so far would be counted anew.
CREATE FUNCTION unit_size_checked() RETURNS trigger
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp AS $$
BEGIN
  IF NEW.sized_at IS NULL OR NEW.sized_at <= coalesce(OLD.sized_at, '-infinity') OR NOT EXISTS (
    SELECT FROM tenants_unitsize z WHERE z.unit_id = OLD.id AND z.until = NEW.sized_at
      AND z.vcpu = OLD.vcpu AND z.memory_gib = OLD.memory_gib AND z.tenant_id = OLD.tenant_id
      AND z.allocation_id = OLD.allocation_id) THEN
    RAISE EXCEPTION 'the size of unit % changes by ledger_resize only', OLD.id USING ERRCODE = 'check_violation';
  END IF;
  RETURN NEW;
END $$;
CREATE TRIGGER unit_size_changes BEFORE UPDATE OF vcpu, memory_gib, sized_at ON tenants_unit FOR EACH ROW
  WHEN ((OLD.vcpu, OLD.memory_gib, OLD.sized_at) IS DISTINCT FROM (NEW.vcpu, NEW.memory_gib, NEW.sized_at))
  EXECUTE FUNCTION unit_size_checked();

-- Gives a placed unit another size on the host that it is on, and keeps the former one. p_disk: the disk that it had.
-- `unplaced`: it has no place; `closed`: its host takes nothing more now; `full`: no room for the growth; else `done`.
-- Lock order: unit, host, as in ledger_release.
CREATE FUNCTION ledger_resize(p_unit uuid, p_vcpu int, p_memory int, p_disk int, p_at timestamptz) RETURNS text
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
  u tenants_unit;
  h tenants_host;
  since timestamptz;
BEGIN
  SELECT * INTO u FROM tenants_unit WHERE id = p_unit AND released_at IS NULL FOR NO KEY UPDATE;
  IF NOT FOUND OR u.host_id IS NULL THEN RETURN 'unplaced'; END IF;
  SELECT * INTO h FROM tenants_host WHERE id = u.host_id FOR NO KEY UPDATE;
  IF p_vcpu > u.vcpu OR p_memory > u.memory_gib THEN
    IF NOT h.placeable THEN RETURN 'closed'; END IF;
    IF greatest(0, p_vcpu - u.vcpu) > h.free_vcpu OR greatest(0, p_memory - u.memory_gib) > h.free_memory_gib THEN
      RETURN 'full';
    END IF;
  END IF;
  since := greatest(p_at, u.sized_at + interval '1 microsecond');
  INSERT INTO tenants_unitsize (id, tenant_id, allocation_id, unit_id, vcpu, memory_gib, disk_gib, until)
    VALUES (gen_random_uuid(), u.tenant_id, u.allocation_id, u.id, u.vcpu, u.memory_gib, p_disk, since);
  UPDATE tenants_unit SET vcpu = p_vcpu, memory_gib = p_memory, sized_at = since WHERE id = u.id;
  UPDATE tenants_host SET free_vcpu = free_vcpu + u.vcpu - p_vcpu,
    free_memory_gib = free_memory_gib + u.memory_gib - p_memory WHERE id = h.id;
  RETURN 'done';
END $$;

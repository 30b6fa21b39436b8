-- The ledger's only writers. Lock order inside: host, then devices by number. Each function is the whole of one
-- change: hold, mask, counters and usage record move together or not at all.

CREATE FUNCTION ledger_mask(p_start int, p_size int) RETURNS int LANGUAGE sql IMMUTABLE AS
  $$ SELECT ((1 << p_size) - 1) << p_start $$;

-- Takes one window of one device whose host is already locked. False: somebody was faster, or a dated hold is
-- in the way (the exclusion constraint says so; the subtransaction keeps the rest).
CREATE FUNCTION ledger_take(p_unit uuid, p_tenant uuid, p_allocation uuid, p_device uuid, p_profile text, p_start int,
                            p_size int, p_media boolean, p_at timestamptz) RETURNS boolean
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
  d record;
  window_mask int := ledger_mask(p_start, p_size);
  hold uuid := gen_random_uuid();
  is_settled boolean;
BEGIN
  UPDATE tenants_gpudevice g SET free = g.free & ~window_mask, media_free = g.media_free AND NOT p_media
    WHERE g.id = p_device AND g.free & window_mask = window_mask AND (NOT p_media OR g.media_free)
    RETURNING g.id, g.number, g.host_id, g.provider_id, g.slots, g.free | window_mask AS free_before INTO d;
  IF NOT FOUND THEN RETURN false; END IF;
  SELECT CASE h.binding WHEN 'device' THEN true WHEN 'gpu' THEN p_size = d.slots ELSE false END INTO is_settled
    FROM tenants_host h WHERE h.id = d.host_id;
  BEGIN
    INSERT INTO tenants_hold (id, kind, device_id, host_id, device_number, start, size, slots, during, media, profile,
                              tenant_id, unit_id, settled, vcpu, memory_gib, note)
    VALUES (hold, 'tenant', d.id, d.host_id, d.number, p_start, p_size,
            int8range(d.number * 16 + p_start, d.number * 16 + p_start + p_size), tstzrange(p_at, NULL), p_media,
            p_profile, p_tenant, p_unit, is_settled, 0, 0, '');
  EXCEPTION WHEN exclusion_violation THEN
    UPDATE tenants_gpudevice g SET free = g.free | window_mask, media_free = g.media_free OR p_media
      WHERE g.id = d.id;
    RETURN false;
  END;
  UPDATE tenants_host h SET empty_gpus = h.empty_gpus - (d.free_before = (1 << d.slots) - 1)::int,
                            unsettled = h.unsettled + (NOT is_settled)::int WHERE h.id = d.host_id;
  IF NOT is_settled THEN UPDATE tenants_gpudevice g SET unsettled = g.unsettled + 1 WHERE g.id = d.id; END IF;
  INSERT INTO tenants_usagerecord (id, hold_id, kind, device_id, provider_id, start, size, profile, tenant_id,
                                   allocation_id, unit_id, vcpu, memory_gib, held_from, rule)
  VALUES (gen_random_uuid(), hold, 'tenant', d.id, d.provider_id, p_start, p_size, p_profile, p_tenant, p_allocation,
          p_unit, 0, 0, p_at, 'first-ready-to-deletion-asked');
  RETURN true;
END $$;

-- Marks a unit placed on a locked host and takes the host's room. The CHECKs refuse more than there is.
CREATE FUNCTION ledger_seat(p_unit uuid, p_host uuid, p_tenant uuid, p_vcpu int, p_memory int, p_dedicated boolean,
                            p_at timestamptz) RETURNS void
LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp AS $$
  UPDATE tenants_host SET free_vcpu = free_vcpu - p_vcpu, free_memory_gib = free_memory_gib - p_memory,
    dedicated_tenant_id = CASE WHEN p_dedicated THEN p_tenant ELSE dedicated_tenant_id END WHERE id = p_host;
  UPDATE tenants_unit SET host_id = p_host, placed_at = p_at WHERE id = p_unit;
$$;

-- May this tenant's unit stand on this host at all? Used under the host's lock and, unlocked, by the probe.
CREATE FUNCTION ledger_host_suits(h tenants_host, p_tenant uuid, p_vcpu int, p_memory int, p_providers uuid[],
                                  p_avoid uuid[], p_dedicated boolean, p_bindings text[]) RETURNS boolean
LANGUAGE sql STABLE AS $$
  SELECT h.placeable AND h.free_vcpu >= p_vcpu AND h.free_memory_gib >= p_memory
    AND (p_providers IS NULL OR h.provider_id = ANY (p_providers))
    AND (p_bindings IS NULL OR h.binding = ANY (p_bindings))
    AND NOT (h.id = ANY (p_avoid))
    AND CASE WHEN p_dedicated
          THEN h.dedicated_tenant_id = p_tenant OR (h.dedicated_tenant_id IS NULL AND h.empty_gpus = h.gpu_count)
          ELSE h.dedicated_tenant_id IS NULL END
$$;

-- The fast path. p_masks/p_starts: free masks in which the window fits and the best start in each, best first
-- (geometry.ranked_choices). p_count > 1: that many whole GPUs of one host. Returns the host, or NULL: no room.
-- Hosts whose devices are not all reported are left to the caller's second try (worst-case admission).
CREATE FUNCTION ledger_claim(p_unit uuid, p_tenant uuid, p_allocation uuid, p_product text, p_profile text,
                             p_masks int[], p_starts int[], p_size int, p_media boolean, p_count int, p_vcpu int,
                             p_memory int, p_providers uuid[], p_avoid uuid[], p_dedicated boolean, p_bindings text[],
                             p_at timestamptz) RETURNS uuid
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
  c record;
  i int;
  try int;
  skipped boolean;
  taken int;
  dev uuid;
  was_locked boolean;
BEGIN
  FOR try IN 1..2 LOOP
    skipped := false;
    IF p_count > 1 THEN
      FOR c IN SELECT h.id AS host_id FROM tenants_host h
        WHERE h.placeable AND h.gpu_product = p_product AND h.empty_gpus >= p_count
          AND ledger_host_suits(h, p_tenant, p_vcpu, p_memory, p_providers, p_avoid, p_dedicated, p_bindings)
          AND (h.binding <> 'host' OR h.unsettled = 0)
        ORDER BY h.empty_gpus, h.id LIMIT 32
      LOOP
        IF try = 1 THEN
          PERFORM 1 FROM tenants_host h WHERE h.id = c.host_id AND h.empty_gpus >= p_count
            AND ledger_host_suits(h, p_tenant, p_vcpu, p_memory, p_providers, p_avoid, p_dedicated, p_bindings)
            FOR NO KEY UPDATE SKIP LOCKED;
        ELSE
          PERFORM 1 FROM tenants_host h WHERE h.id = c.host_id AND h.empty_gpus >= p_count
            AND ledger_host_suits(h, p_tenant, p_vcpu, p_memory, p_providers, p_avoid, p_dedicated, p_bindings)
            FOR NO KEY UPDATE;
        END IF;
        IF NOT FOUND THEN skipped := true; CONTINUE; END IF;
        taken := 0;
        BEGIN
          FOR dev IN SELECT g.id FROM tenants_gpudevice g WHERE g.host_id = c.host_id AND g.placeable
              AND g.product = p_product AND g.free = (1 << g.slots) - 1 ORDER BY g.number
          LOOP
            IF ledger_take(p_unit, p_tenant, p_allocation, dev, p_profile, 0, p_size, false, p_at) THEN
              taken := taken + 1;
            END IF;
            EXIT WHEN taken = p_count;
          END LOOP;
          IF taken < p_count THEN RAISE EXCEPTION 'not enough' USING ERRCODE = 'TN001'; END IF;
        EXCEPTION WHEN SQLSTATE 'TN001' THEN CONTINUE;
        END;
        PERFORM ledger_seat(p_unit, c.host_id, p_tenant, p_vcpu, p_memory, p_dedicated, p_at);
        RETURN c.host_id;
      END LOOP;
    ELSE
      FOR i IN 1..coalesce(array_length(p_masks, 1), 0) LOOP
        FOR c IN SELECT g.id, g.host_id FROM tenants_gpudevice g JOIN tenants_host h ON h.id = g.host_id
          WHERE g.placeable AND g.product = p_product AND g.free = p_masks[i]
            AND (NOT p_media OR g.media_free) AND (g.windows_trusted OR p_size = g.slots)
            AND (h.binding = 'device' OR (h.binding = 'gpu' AND g.unsettled = 0)
                 OR (h.binding = 'host' AND h.unsettled = 0))
            AND ledger_host_suits(h, p_tenant, p_vcpu, p_memory, p_providers, p_avoid, p_dedicated, p_bindings)
          ORDER BY g.number LIMIT 24
        LOOP
          IF try = 1 THEN
            PERFORM 1 FROM tenants_host h WHERE h.id = c.host_id AND (h.binding <> 'host' OR h.unsettled = 0)
              AND ledger_host_suits(h, p_tenant, p_vcpu, p_memory, p_providers, p_avoid, p_dedicated, p_bindings)
              FOR NO KEY UPDATE SKIP LOCKED;
          ELSE
            PERFORM 1 FROM tenants_host h WHERE h.id = c.host_id AND (h.binding <> 'host' OR h.unsettled = 0)
              AND ledger_host_suits(h, p_tenant, p_vcpu, p_memory, p_providers, p_avoid, p_dedicated, p_bindings)
              FOR NO KEY UPDATE;
          END IF;
          IF NOT FOUND THEN skipped := true; CONTINUE; END IF;
          PERFORM 1 FROM tenants_gpudevice g JOIN tenants_host h ON h.id = g.host_id
            WHERE g.id = c.id AND g.placeable AND (h.binding <> 'gpu' OR g.unsettled = 0);
          IF FOUND AND ledger_take(p_unit, p_tenant, p_allocation, c.id, p_profile, p_starts[i], p_size, p_media, p_at)
          THEN
            PERFORM ledger_seat(p_unit, c.host_id, p_tenant, p_vcpu, p_memory, p_dedicated, p_at);
            RETURN c.host_id;
          END IF;
        END LOOP;
      END LOOP;
    END IF;
    EXIT WHEN NOT skipped;
  END LOOP;
  RETURN NULL;
END $$;

-- Takes named windows for one unit on one host (second try, re-placement, adoption). All or nothing.
CREATE FUNCTION ledger_claim_at(p_unit uuid, p_tenant uuid, p_allocation uuid, p_host uuid, p_devices uuid[],
                                p_starts int[], p_profile text, p_size int, p_media boolean, p_vcpu int, p_memory int,
                                p_dedicated boolean, p_at timestamptz) RETURNS boolean
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp AS $$
BEGIN
  PERFORM 1 FROM tenants_host h WHERE h.id = p_host
    AND ledger_host_suits(h, p_tenant, p_vcpu, p_memory, NULL, '{}', p_dedicated, NULL) FOR NO KEY UPDATE;
  IF NOT FOUND THEN RETURN false; END IF;
  BEGIN
    FOR i IN 1..array_length(p_devices, 1) LOOP
      IF NOT ledger_take(p_unit, p_tenant, p_allocation, p_devices[i], p_profile, p_starts[i], p_size, p_media, p_at) THEN
        RAISE EXCEPTION 'taken' USING ERRCODE = 'TN001';
      END IF;
    END LOOP;
  EXCEPTION WHEN SQLSTATE 'TN001' THEN RETURN false;
  END;
  PERFORM ledger_seat(p_unit, p_host, p_tenant, p_vcpu, p_memory, p_dedicated, p_at);
  RETURN true;
END $$;

-- Brings masks and counters of a locked host in line with its holds of now; also the audit's repair.
CREATE FUNCTION ledger_recount(p_host uuid, p_at timestamptz) RETURNS void
LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp AS $$
  UPDATE tenants_gpudevice g SET
    free = ((1 << g.slots) - 1) & ~coalesce((SELECT bit_or(ledger_mask(o.start, o.size)) FROM tenants_hold o
             WHERE o.device_id = g.id AND o.during @> p_at), 0),
    media_free = NOT EXISTS (SELECT 1 FROM tenants_hold o WHERE o.device_id = g.id AND o.media AND o.during @> p_at),
    unsettled = (SELECT count(*) FROM tenants_hold o WHERE o.device_id = g.id AND NOT o.settled)
  WHERE g.host_id = p_host;
  UPDATE tenants_host h SET
    empty_gpus = (SELECT count(*) FROM tenants_gpudevice g WHERE g.host_id = h.id AND g.removed_at IS NULL
                   AND g.free = (1 << g.slots) - 1),
    gpu_count = (SELECT count(*) FROM tenants_gpudevice g WHERE g.host_id = h.id AND g.removed_at IS NULL),
    unsettled = (SELECT count(*) FROM tenants_hold o WHERE o.host_id = h.id AND NOT o.settled)
  WHERE h.id = p_host;
$$;

-- Gives back everything a unit holds and the host room it took. Safe to repeat. Returns the number of windows.
CREATE FUNCTION ledger_release(p_unit uuid, p_at timestamptz) RETURNS int
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
  u record;
  o record;
  released int := 0;
BEGIN
  SELECT id, host_id, vcpu, memory_gib INTO u FROM tenants_unit WHERE id = p_unit FOR NO KEY UPDATE;
  IF NOT FOUND OR u.host_id IS NULL THEN RETURN 0; END IF;
  PERFORM 1 FROM tenants_host WHERE id = u.host_id FOR NO KEY UPDATE;
  FOR o IN DELETE FROM tenants_hold WHERE unit_id = p_unit RETURNING *
  LOOP
    released := released + 1;
    UPDATE tenants_gpudevice g SET free = g.free | ledger_mask(o.start, o.size), media_free = g.media_free OR o.media,
      unsettled = g.unsettled - (NOT o.settled)::int WHERE g.id = o.device_id;
    UPDATE tenants_usagerecord SET held_to = greatest(p_at, held_from) WHERE hold_id = o.id AND held_to IS NULL;
    UPDATE tenants_host h SET unsettled = h.unsettled - (NOT o.settled)::int,
      empty_gpus = h.empty_gpus + (SELECT (g.removed_at IS NULL AND g.free = (1 << g.slots) - 1)::int
                                     FROM tenants_gpudevice g WHERE g.id = o.device_id)
      WHERE h.id = o.host_id;
  END LOOP;
  UPDATE tenants_unit SET host_id = NULL, placed_at = NULL WHERE id = p_unit;
  UPDATE tenants_host h SET free_vcpu = h.free_vcpu + u.vcpu, free_memory_gib = h.free_memory_gib + u.memory_gib,
    dedicated_tenant_id = CASE WHEN EXISTS (SELECT 1 FROM tenants_unit x WHERE x.host_id = h.id) THEN h.dedicated_tenant_id END
    WHERE h.id = u.host_id;
  RETURN released;
END $$;

-- Corrects where holds lie, by the provider's report. p_moves: [{hold, device, start}]; every named hold becomes
-- settled. Swaps pass because the exclusion constraints wait until the end. Never frees: a hold moves or stays.
CREATE FUNCTION ledger_rebind(p_host uuid, p_moves jsonb, p_at timestamptz) RETURNS int
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
  m record;
  o record;
  g record;
  moved int := 0;
BEGIN
  PERFORM 1 FROM tenants_host WHERE id = p_host FOR NO KEY UPDATE;
  SET CONSTRAINTS hold_no_overlap, hold_one_media DEFERRED;
  FOR m IN SELECT (x->>'hold')::uuid AS hold, (x->>'device')::uuid AS device, (x->>'start')::int AS start,
                  coalesce((x->>'settled')::boolean, true) AS settled
           FROM jsonb_array_elements(p_moves) AS x ORDER BY 1
  LOOP
    SELECT * INTO o FROM tenants_hold WHERE id = m.hold AND host_id = p_host AND kind = 'tenant';
    CONTINUE WHEN NOT FOUND;
    SELECT id, number, provider_id INTO g FROM tenants_gpudevice WHERE id = m.device AND host_id = p_host;
    IF NOT FOUND THEN RAISE EXCEPTION 'a hold is rebound within its own host only'; END IF;
    IF o.device_id <> g.id OR o.start <> m.start THEN
      moved := moved + 1;
      UPDATE tenants_usagerecord SET held_to = greatest(p_at, held_from) WHERE hold_id = o.id AND held_to IS NULL;
      INSERT INTO tenants_usagerecord (id, hold_id, kind, device_id, provider_id, start, size, profile, tenant_id,
          allocation_id, unit_id, vcpu, memory_gib, held_from, billable_from, billable_to, rule)
        SELECT gen_random_uuid(), o.id, 'tenant', g.id, g.provider_id, m.start, o.size, o.profile, o.tenant_id,
               r.allocation_id, o.unit_id, 0, 0, greatest(p_at, r.held_from), r.billable_from, r.billable_to, r.rule
        FROM tenants_usagerecord r WHERE r.hold_id = o.id ORDER BY r.held_from DESC, r.held_to DESC LIMIT 1;
    END IF;
    UPDATE tenants_hold SET device_id = g.id, device_number = g.number, start = m.start, settled = settled OR m.settled,
      slots = int8range(g.number * 16 + m.start, g.number * 16 + m.start + size) WHERE id = o.id;
  END LOOP;
  SET CONSTRAINTS hold_no_overlap, hold_one_media IMMEDIATE;
  PERFORM ledger_recount(p_host, p_at);
  RETURN moved;
END $$;

-- Keeps a window for something that is no tenant: foreign, maintenance, fault, reserved. Only on room that nobody
-- holds in that time. NULL: it is held. A dated hold (p_from in the future) leaves the mask alone until it begins.
CREATE FUNCTION ledger_put(p_kind text, p_device uuid, p_start int, p_size int, p_from timestamptz, p_to timestamptz,
                           p_note text, p_vcpu int, p_memory int, p_now timestamptz) RETURNS uuid
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
  d record;
  hold uuid := gen_random_uuid();
  starts_now boolean := p_from <= p_now;
  window_mask int := ledger_mask(p_start, p_size);
BEGIN
  SELECT g.id, g.number, g.host_id, g.provider_id, g.slots INTO d FROM tenants_gpudevice g WHERE g.id = p_device;
  IF NOT FOUND THEN RETURN NULL; END IF;
  PERFORM 1 FROM tenants_host WHERE id = d.host_id FOR NO KEY UPDATE;
  BEGIN
    INSERT INTO tenants_hold (id, kind, device_id, host_id, device_number, start, size, slots, during, media, profile,
                              settled, vcpu, memory_gib, note)
    VALUES (hold, p_kind, d.id, d.host_id, d.number, p_start, p_size,
            int8range(d.number * 16 + p_start, d.number * 16 + p_start + p_size), tstzrange(p_from, p_to), false, '',
            true, p_vcpu, p_memory, p_note);
    IF starts_now THEN
      UPDATE tenants_gpudevice g SET free = g.free & ~window_mask WHERE g.id = d.id;
      UPDATE tenants_host SET free_vcpu = free_vcpu - p_vcpu, free_memory_gib = free_memory_gib - p_memory
        WHERE id = d.host_id;
      PERFORM ledger_recount(d.host_id, p_now);
      INSERT INTO tenants_usagerecord (id, hold_id, kind, device_id, provider_id, start, size, profile, vcpu, memory_gib,
                                       held_from, rule)
      VALUES (gen_random_uuid(), hold, p_kind, d.id, d.provider_id, p_start, p_size, '', p_vcpu, p_memory, p_from, '-');
    END IF;
  EXCEPTION WHEN exclusion_violation THEN RETURN NULL;
  END;
  RETURN hold;
END $$;

-- Ends a hold that is no tenant's. Safe to repeat.
CREATE FUNCTION ledger_drop(p_hold uuid, p_at timestamptz) RETURNS boolean
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
  host uuid;
  o record;
BEGIN
  SELECT h.host_id INTO host FROM tenants_hold h WHERE h.id = p_hold AND h.kind <> 'tenant';
  IF NOT FOUND THEN RETURN false; END IF;
  PERFORM 1 FROM tenants_host WHERE id = host FOR NO KEY UPDATE;
  DELETE FROM tenants_hold h WHERE h.id = p_hold RETURNING * INTO o;
  IF NOT FOUND THEN RETURN false; END IF;
  UPDATE tenants_usagerecord SET held_to = greatest(p_at, held_from) WHERE hold_id = p_hold AND held_to IS NULL;
  IF FOUND THEN
    UPDATE tenants_host SET free_vcpu = free_vcpu + o.vcpu, free_memory_gib = free_memory_gib + o.memory_gib
      WHERE id = host;
  END IF;
  PERFORM ledger_recount(host, p_at);
  RETURN true;
END $$;

-- Begins dated holds whose time has come and ends those whose time is over. Returns how many changed.
CREATE FUNCTION ledger_turn_dated(p_now timestamptz) RETURNS int
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
  o record;
  turned int := 0;
BEGIN
  FOR o IN SELECT h.id FROM tenants_hold h WHERE h.kind <> 'tenant' AND upper(h.during) <= p_now LOOP
    PERFORM ledger_drop(o.id, p_now);
    turned := turned + 1;
  END LOOP;
  FOR o IN SELECT h.* , g.provider_id FROM tenants_hold h JOIN tenants_gpudevice g ON g.id = h.device_id
    WHERE h.kind <> 'tenant' AND h.during @> p_now
      AND NOT EXISTS (SELECT 1 FROM tenants_usagerecord r WHERE r.hold_id = h.id)
  LOOP
    PERFORM 1 FROM tenants_host WHERE id = o.host_id FOR NO KEY UPDATE;
    INSERT INTO tenants_usagerecord (id, hold_id, kind, device_id, provider_id, start, size, profile, vcpu, memory_gib,
                                     held_from, rule)
      VALUES (gen_random_uuid(), o.id, o.kind, o.device_id, o.provider_id, o.start, o.size, '', o.vcpu, o.memory_gib,
              lower(o.during), '-');
    PERFORM ledger_recount(o.host_id, p_now);
    turned := turned + 1;
  END LOOP;
  RETURN turned;
END $$;

-- Says which hosts and devices may be placed on, after anything it depends on has changed.
CREATE FUNCTION ledger_refresh_placeable(p_provider uuid) RETURNS void
LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp AS $$
  WITH wanted AS (
    SELECT h.id, (h.state = 'open' AND h.healthy AND p.enabled AND p.deletion_requested_at IS NULL
      AND NOT EXISTS (SELECT 1 FROM tenants_finding f WHERE f.host_id = h.id AND f.device_id IS NULL
                        AND f.blocks_placement AND f.resolved_at IS NULL)) AS value
    FROM tenants_host h JOIN tenants_provider p ON p.id = h.provider_id WHERE h.provider_id = p_provider)
  UPDATE tenants_host h SET placeable = w.value FROM wanted w WHERE w.id = h.id AND h.placeable <> w.value;
  WITH wanted AS (
    SELECT g.id, (h.placeable AND g.healthy AND g.removed_at IS NULL
      AND NOT EXISTS (SELECT 1 FROM tenants_finding f WHERE f.device_id = g.id AND f.blocks_placement
                        AND f.resolved_at IS NULL)) AS value
    FROM tenants_gpudevice g JOIN tenants_host h ON h.id = g.host_id WHERE g.provider_id = p_provider)
  UPDATE tenants_gpudevice g SET placeable = w.value FROM wanted w WHERE w.id = g.id AND g.placeable <> w.value;
$$;

CREATE INDEX gpu_device_host_open ON tenants_gpudevice (host_id) WHERE placeable;

-- GPUs of a fixed layout: a window there is a place only where a MIG device of the asked profile is carved, a whole GPU
-- only where nothing is. The general probe has its own index without them; they have theirs.

-- What is carved, in one word per GPU ("2g.20gb@0 1g.10gb@2"), kept with the rows of its MIG devices.
CREATE FUNCTION gpu_device_layout_kept() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
BEGIN
  UPDATE tenants_gpudevice g SET layout = w.layout
  FROM (SELECT c.device_id, coalesce((SELECT string_agg(m.profile || '@' || m.start, ' ' ORDER BY m.start)
                                        FROM tenants_migdevice m WHERE m.device_id = c.device_id), '') AS layout
        FROM (SELECT DISTINCT device_id FROM changed) c) w
  WHERE g.id = w.device_id AND g.layout <> w.layout;
  RETURN NULL;
END $$;

CREATE TRIGGER mig_device_added AFTER INSERT ON tenants_migdevice REFERENCING NEW TABLE AS changed
  FOR EACH STATEMENT EXECUTE FUNCTION gpu_device_layout_kept();
CREATE TRIGGER mig_device_changed AFTER UPDATE ON tenants_migdevice REFERENCING NEW TABLE AS changed
  FOR EACH STATEMENT EXECUTE FUNCTION gpu_device_layout_kept();
CREATE TRIGGER mig_device_gone AFTER DELETE ON tenants_migdevice REFERENCING OLD TABLE AS changed
  FOR EACH STATEMENT EXECUTE FUNCTION gpu_device_layout_kept();

-- Never given out whole: fixed, and carved or nobody knows.
CREATE FUNCTION gpu_device_is_carved(g tenants_gpudevice) RETURNS boolean LANGUAGE sql IMMUTABLE AS $$
  SELECT g.removed_at IS NULL AND g.layout_change = 'fixed' AND (g.layout <> '' OR g.mode IN ('mig', 'unknown'))
$$;

-- How many such GPUs a host has; whoever changes a GPU so holds the host's lock.
CREATE FUNCTION host_carved_kept() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
BEGIN
  IF TG_OP <> 'INSERT' AND gpu_device_is_carved(OLD) THEN
    UPDATE tenants_host SET carved_gpus = carved_gpus - 1 WHERE id = OLD.host_id;
  END IF;
  IF TG_OP <> 'DELETE' AND gpu_device_is_carved(NEW) THEN
    UPDATE tenants_host SET carved_gpus = carved_gpus + 1 WHERE id = NEW.host_id;
  END IF;
  RETURN NULL;
END $$;

CREATE TRIGGER gpu_device_carved_added AFTER INSERT ON tenants_gpudevice
  FOR EACH ROW WHEN (gpu_device_is_carved(NEW)) EXECUTE FUNCTION host_carved_kept();
CREATE TRIGGER gpu_device_carved_changed
  AFTER UPDATE OF layout, layout_change, mode, removed_at, host_id ON tenants_gpudevice
  FOR EACH ROW WHEN (gpu_device_is_carved(OLD) <> gpu_device_is_carved(NEW) OR OLD.host_id <> NEW.host_id)
  EXECUTE FUNCTION host_carved_kept();
CREATE TRIGGER gpu_device_carved_gone AFTER DELETE ON tenants_gpudevice
  FOR EACH ROW WHEN (gpu_device_is_carved(OLD)) EXECUTE FUNCTION host_carved_kept();

-- What is there already.
UPDATE tenants_gpudevice g SET layout = w.layout
FROM (SELECT m.device_id, string_agg(m.profile || '@' || m.start, ' ' ORDER BY m.start) AS layout
      FROM tenants_migdevice m GROUP BY m.device_id) w
WHERE g.id = w.device_id;
UPDATE tenants_host h SET carved_gpus = w.carved
FROM (SELECT g.host_id, count(*) AS carved FROM tenants_gpudevice g WHERE gpu_device_is_carved(g) GROUP BY g.host_id) w
WHERE h.id = w.host_id AND h.carved_gpus <> w.carved;

-- Takes one window of one device whose host is already locked. False: somebody was faster, a dated hold is in the way
-- (the exclusion constraint says so; the subtransaction keeps the rest), or the layout is fixed and has no such window.
CREATE OR REPLACE FUNCTION ledger_take(p_unit uuid, p_tenant uuid, p_allocation uuid, p_device uuid, p_profile text,
                                       p_start int, p_size int, p_media boolean, p_at timestamptz) RETURNS boolean
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
  d record;
  window_mask int := ledger_mask(p_start, p_size);
  hold uuid := gen_random_uuid();
  is_settled boolean;
BEGIN
  UPDATE tenants_gpudevice g SET free = g.free & ~window_mask, media_free = g.media_free AND NOT p_media
    WHERE g.id = p_device AND g.free & window_mask = window_mask AND (NOT p_media OR g.media_free)
      AND (g.layout_change <> 'fixed' OR CASE p_profile
             WHEN '' THEN NOT gpu_device_is_carved(g)
             ELSE p_profile || '@' || p_start = ANY (string_to_array(g.layout, ' ')) END)
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

-- One GPU or window of a fixed layout, the fullest GPU first. GPUs of one layout and one free mask stand for each other,
-- so the different pairs of the two are walked through the index gpu_device_fixed, one probe each, and layouts without
-- the profile are skipped in one step: the cost follows how many different pairs a provider has (15 for one layout of
-- four windows, 127 at most for one of seven), never how many GPUs. Fullness is asked for step by step, the fullest first, so
-- that hosts are read for few pairs. Devices of one profile stand for each other also
-- where the provider chooses (binding `gpu`, `host`), so holds without a report are no obstacle here.
-- Called by ledger_claim only, whose settings keep the plan on the index.
CREATE FUNCTION ledger_claim_fixed(p_unit uuid, p_tenant uuid, p_allocation uuid, p_product text, p_profile text,
                                   p_size int, p_media boolean, p_vcpu int, p_memory int, p_providers uuid[],
                                   p_avoid uuid[], p_dedicated boolean, p_bindings text[], p_at timestamptz)
RETURNS uuid
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
  c record;
  try int;
  skipped boolean;
  providers uuid[];
  layouts text[];
  frees int[];
  starts int[];
  fullness int;
BEGIN
  FOR try IN 1..2 LOOP
    skipped := false;
    WITH RECURSIVE shape AS (
      SELECT p.id AS provider, s.layout, s.free, strpos(' ' || s.layout, ' ' || p_profile || '@') > 0 AS has
      FROM unnest(p_providers) AS p(id) CROSS JOIN LATERAL (
        SELECT d.layout, d.free FROM tenants_gpudevice d
        WHERE d.placeable AND d.layout_change = 'fixed' AND d.free > 0 AND d.layout <> ''
          AND d.provider_id = p.id AND d.product = p_product
        ORDER BY d.layout, d.free LIMIT 1) s
      WHERE p_profile <> ''
      UNION ALL
      SELECT shape.provider, s.layout, s.free, strpos(' ' || s.layout, ' ' || p_profile || '@') > 0
      FROM shape CROSS JOIN LATERAL (
        SELECT d.layout, d.free FROM tenants_gpudevice d
        WHERE d.placeable AND d.layout_change = 'fixed' AND d.free > 0 AND d.layout <> ''
          AND d.provider_id = shape.provider AND d.product = p_product
          AND (d.layout, d.free) > (shape.layout, CASE WHEN shape.has THEN shape.free ELSE 2147483647 END)
        ORDER BY d.layout, d.free LIMIT 1) s
    ), choice AS (
      SELECT shape.provider, shape.layout, shape.free, w.start
      FROM shape CROSS JOIN LATERAL (
        SELECT min(x.start) AS start
        FROM (SELECT split_part(one, '@', 2)::int AS start FROM unnest(string_to_array(shape.layout, ' ')) AS t(one)
              WHERE split_part(one, '@', 1) = p_profile) x
        WHERE shape.free & ledger_mask(x.start, p_size) = ledger_mask(x.start, p_size)) w
      WHERE shape.has AND w.start IS NOT NULL
      UNION ALL
      SELECT p.id, '', ledger_mask(0, p_size), 0 FROM unnest(p_providers) AS p(id) WHERE p_profile = ''
    )
    SELECT array_agg(r.provider), array_agg(r.layout), array_agg(r.free), array_agg(r.start)
      INTO providers, layouts, frees, starts FROM choice r;
    FOR fullness IN SELECT DISTINCT bit_count(x::bit(32)) FROM unnest(frees) AS t(x) ORDER BY 1 LOOP
      FOR c IN
        SELECT g.id, g.host_id, r.start
        FROM unnest(providers, layouts, frees, starts) AS r(provider, layout, free, start) CROSS JOIN LATERAL (
          SELECT d.id, d.host_id, d.number FROM tenants_gpudevice d JOIN tenants_host h ON h.id = d.host_id
          WHERE d.placeable AND d.layout_change = 'fixed' AND d.free > 0
            AND (d.layout <> '' OR d.mode NOT IN ('mig', 'unknown'))
            AND d.provider_id = r.provider AND d.product = p_product AND d.layout = r.layout AND d.free = r.free
            AND (NOT p_media OR d.media_free)
            AND h.placeable AND h.free_vcpu >= p_vcpu AND h.free_memory_gib >= p_memory
            AND (p_bindings IS NULL OR h.boundary_kinds = '{}' OR h.boundary_kinds::text[] && p_bindings)
            AND (p_avoid = '{}' OR NOT (h.id = ANY (p_avoid)))
            AND CASE WHEN p_dedicated
                  THEN h.dedicated_tenant_id = p_tenant OR (h.dedicated_tenant_id IS NULL AND h.empty_gpus = h.gpu_count)
                  ELSE h.dedicated_tenant_id IS NULL END
          ORDER BY d.number + 0 LIMIT 8
        ) g
        WHERE bit_count(r.free::bit(32)) = fullness
        ORDER BY g.number LIMIT 40
      LOOP
        IF try = 1 THEN
          PERFORM 1 FROM tenants_host h WHERE h.id = c.host_id FOR NO KEY UPDATE SKIP LOCKED;
        ELSE
          PERFORM 1 FROM tenants_host h WHERE h.id = c.host_id FOR NO KEY UPDATE;
        END IF;
        IF NOT FOUND THEN skipped := true; CONTINUE; END IF;
        PERFORM 1 FROM tenants_host h JOIN tenants_gpudevice d ON d.id = c.id
          WHERE h.id = c.host_id AND d.placeable
            AND ledger_host_suits(h, p_tenant, p_vcpu, p_memory, p_providers, p_avoid, p_dedicated, p_bindings);
        IF NOT FOUND THEN skipped := true; CONTINUE; END IF;
        IF ledger_take(p_unit, p_tenant, p_allocation, c.id, p_profile, c.start, p_size, p_media, p_at) THEN
          PERFORM ledger_seat(p_unit, c.host_id, p_tenant, p_vcpu, p_memory, p_dedicated, p_at);
          RETURN c.host_id;
        END IF;
        skipped := true;
      END LOOP;
    END LOOP;
    EXIT WHEN NOT skipped;
  END LOOP;
  RETURN NULL;
END $$;

-- As before, but GPUs of a fixed layout are asked first and by themselves, and the general probe leaves them out. Whether
-- there is any is one probe of their index.
CREATE OR REPLACE FUNCTION ledger_claim(p_unit uuid, p_tenant uuid, p_allocation uuid, p_product text, p_profile text,
                             p_masks int[], p_starts int[], p_size int, p_media boolean, p_count int, p_vcpu int,
                             p_memory int, p_providers uuid[], p_avoid uuid[], p_dedicated boolean, p_bindings text[],
                             p_at timestamptz) RETURNS uuid
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp
-- one plan, always by the index: statistics of a mask are out of date the moment they are made
SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_bitmapscan = off
SET enable_hashjoin = off SET enable_mergejoin = off SET jit = off AS $$
DECLARE
  c record;
  try int;
  skipped boolean;
  host uuid;
BEGIN
  IF p_count > 1 THEN
    RETURN ledger_claim_whole(p_unit, p_tenant, p_allocation, p_product, p_profile, p_size, p_count, p_vcpu, p_memory,
                              p_providers, p_avoid, p_dedicated, p_bindings, p_at);
  END IF;
  IF EXISTS (SELECT FROM tenants_gpudevice d WHERE d.placeable AND d.layout_change = 'fixed' AND d.free > 0
               AND (d.layout <> '' OR d.mode NOT IN ('mig', 'unknown'))
               AND d.provider_id = ANY (p_providers) AND d.product = p_product) THEN
    host := ledger_claim_fixed(p_unit, p_tenant, p_allocation, p_product, p_profile, p_size, p_media, p_vcpu, p_memory,
                               p_providers, p_avoid, p_dedicated, p_bindings, p_at);
    IF host IS NOT NULL THEN RETURN host; END IF;
  END IF;
  FOR try IN 1..2 LOOP
    skipped := false;
    FOR c IN
      SELECT g.id, g.host_id, r.start
      FROM unnest(p_masks, p_starts) WITH ORDINALITY AS r(mask, start, n)
      CROSS JOIN LATERAL (
        SELECT d.id, d.host_id, d.number FROM tenants_gpudevice d JOIN tenants_host h ON h.id = d.host_id
        WHERE d.placeable AND d.layout_change <> 'fixed' AND d.product = p_product AND d.free = r.mask
          AND (NOT p_media OR d.media_free) AND (d.windows_trusted OR p_size = d.slots)
          AND (h.binding = 'device' OR (h.binding = 'gpu' AND d.unsettled = 0)
               OR (h.binding = 'host' AND h.unsettled = 0))
          AND h.placeable AND h.free_vcpu >= p_vcpu AND h.free_memory_gib >= p_memory
          AND (p_providers IS NULL OR d.provider_id = ANY (p_providers))
          AND (p_bindings IS NULL OR h.boundary_kinds = '{}' OR h.boundary_kinds::text[] && p_bindings)
          AND (p_avoid = '{}' OR NOT (h.id = ANY (p_avoid)))
          AND CASE WHEN p_dedicated
                THEN h.dedicated_tenant_id = p_tenant OR (h.dedicated_tenant_id IS NULL AND h.empty_gpus = h.gpu_count)
                ELSE h.dedicated_tenant_id IS NULL END
        ORDER BY d.number + 0 LIMIT 6
      ) g
      ORDER BY r.n, g.number LIMIT 40
    LOOP
      IF try = 1 THEN
        PERFORM 1 FROM tenants_host h WHERE h.id = c.host_id FOR NO KEY UPDATE SKIP LOCKED;
      ELSE
        PERFORM 1 FROM tenants_host h WHERE h.id = c.host_id FOR NO KEY UPDATE;
      END IF;
      IF NOT FOUND THEN skipped := true; CONTINUE; END IF;
      -- looked at again under the lock: all that another claim can have changed
      PERFORM 1 FROM tenants_host h JOIN tenants_gpudevice d ON d.id = c.id
        WHERE h.id = c.host_id AND d.placeable AND d.layout_change <> 'fixed'
          AND (h.binding = 'device' OR (h.binding = 'gpu' AND d.unsettled = 0)
               OR (h.binding = 'host' AND h.unsettled = 0))
          AND ledger_host_suits(h, p_tenant, p_vcpu, p_memory, p_providers, p_avoid, p_dedicated, p_bindings);
      IF NOT FOUND THEN skipped := true; CONTINUE; END IF;
      IF ledger_take(p_unit, p_tenant, p_allocation, c.id, p_profile, c.start, p_size, p_media, p_at) THEN
        PERFORM ledger_seat(p_unit, c.host_id, p_tenant, p_vcpu, p_memory, p_dedicated, p_at);
        RETURN c.host_id;
      END IF;
      skipped := true;
    END LOOP;
    EXIT WHEN NOT skipped;
  END LOOP;
  RETURN NULL;
END $$;

-- Has a host so many GPUs that may be given out whole? Holds without a report hinder only where another layout could be
-- made of them.
CREATE FUNCTION ledger_whole_gpus_suit(h tenants_host, p_product text, p_count int) RETURNS boolean
LANGUAGE sql STABLE AS $$
  SELECT (h.binding <> 'host' OR h.unsettled = 0 OR NOT EXISTS (
      SELECT FROM tenants_gpudevice g WHERE g.host_id = h.id AND g.removed_at IS NULL AND g.layout_change <> 'fixed'))
    AND (h.carved_gpus = 0 OR p_count <= (
      SELECT count(*) FROM tenants_gpudevice g WHERE g.host_id = h.id AND g.placeable AND g.product = p_product
        AND g.free = (1 << g.slots) - 1 AND NOT gpu_device_is_carved(g)))
$$;

-- The same for several whole GPUs of one host. Hosts that are wholly carved are not in the index host_whole_gpus; of those
-- that are partly so, the whole ones are counted.
CREATE OR REPLACE FUNCTION ledger_claim_whole(p_unit uuid, p_tenant uuid, p_allocation uuid, p_product text, p_profile text,
                                   p_size int, p_count int, p_vcpu int, p_memory int, p_providers uuid[],
                                   p_avoid uuid[], p_dedicated boolean, p_bindings text[], p_at timestamptz)
RETURNS uuid
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
  c record;
  try int;
  skipped boolean;
  taken int;
  dev uuid;
BEGIN
  FOR try IN 1..2 LOOP
    skipped := false;
    FOR c IN SELECT h.id AS host_id FROM tenants_host h
      WHERE h.placeable AND h.gpu_product = p_product AND h.empty_gpus >= p_count
        AND h.free_vcpu >= p_vcpu AND h.free_memory_gib >= p_memory
        AND h.gpu_count > h.carved_gpus AND ledger_whole_gpus_suit(h, p_product, p_count)
        AND ledger_host_suits(h, p_tenant, p_vcpu, p_memory, p_providers, p_avoid, p_dedicated, p_bindings)
      ORDER BY h.empty_gpus, h.id LIMIT 32
    LOOP
      IF try = 1 THEN
        PERFORM 1 FROM tenants_host h WHERE h.id = c.host_id FOR NO KEY UPDATE SKIP LOCKED;
      ELSE
        PERFORM 1 FROM tenants_host h WHERE h.id = c.host_id FOR NO KEY UPDATE;
      END IF;
      IF NOT FOUND THEN skipped := true; CONTINUE; END IF;
      PERFORM 1 FROM tenants_host h WHERE h.id = c.host_id AND h.empty_gpus >= p_count
        AND h.gpu_count > h.carved_gpus AND ledger_whole_gpus_suit(h, p_product, p_count)
        AND ledger_host_suits(h, p_tenant, p_vcpu, p_memory, p_providers, p_avoid, p_dedicated, p_bindings);
      IF NOT FOUND THEN skipped := true; CONTINUE; END IF;
      taken := 0;
      BEGIN
        FOR dev IN SELECT g.id FROM tenants_gpudevice g WHERE g.host_id = c.host_id AND g.placeable
            AND g.product = p_product AND g.free = (1 << g.slots) - 1 AND NOT gpu_device_is_carved(g) ORDER BY g.number
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
    EXIT WHEN NOT skipped;
  END LOOP;
  RETURN NULL;
END $$;

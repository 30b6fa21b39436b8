-- The fast path as one probe: every mask in which the window fits is looked up through the index (product, free,
-- number), best first, without a lock; then the host is locked and the window taken, else the next candidate.
-- p_kinds: kinds of boundary that will do. Returns the host, or NULL: no room. Hosts whose devices are not all
-- reported are left to the caller's second try (worst-case admission).
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
BEGIN
  IF p_count > 1 THEN
    RETURN ledger_claim_whole(p_unit, p_tenant, p_allocation, p_product, p_profile, p_size, p_count, p_vcpu, p_memory,
                              p_providers, p_avoid, p_dedicated, p_bindings, p_at);
  END IF;
  FOR try IN 1..2 LOOP
    skipped := false;
    FOR c IN
      SELECT g.id, g.host_id, r.start
      FROM unnest(p_masks, p_starts) WITH ORDINALITY AS r(mask, start, n)
      CROSS JOIN LATERAL (
        SELECT d.id, d.host_id, d.number FROM tenants_gpudevice d JOIN tenants_host h ON h.id = d.host_id
        WHERE d.placeable AND d.product = p_product AND d.free = r.mask
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
        ORDER BY d.number LIMIT 6
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
        WHERE h.id = c.host_id AND d.placeable
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

-- The same for several whole GPUs of one host.
CREATE FUNCTION ledger_claim_whole(p_unit uuid, p_tenant uuid, p_allocation uuid, p_product text, p_profile text,
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
        AND (h.binding <> 'host' OR h.unsettled = 0)
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
        AND (h.binding <> 'host' OR h.unsettled = 0)
        AND ledger_host_suits(h, p_tenant, p_vcpu, p_memory, p_providers, p_avoid, p_dedicated, p_bindings);
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
    EXIT WHEN NOT skipped;
  END LOOP;
  RETURN NULL;
END $$;

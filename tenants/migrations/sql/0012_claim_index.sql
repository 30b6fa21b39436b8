-- The probe orders by the expression of the index gpu_device_claim, so that no other index can serve it.
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


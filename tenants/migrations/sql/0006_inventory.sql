-- What a host may carry, and masks that follow holds rather than clocks.

-- May this tenant's unit stand on this host at all? Used under the host's lock and, unlocked, by the probe. The
-- last argument (p_bindings of ledger_claim) lists the boundary kinds that will do; NULL or an empty column: any.
CREATE OR REPLACE FUNCTION ledger_host_suits(h tenants_host, p_tenant uuid, p_vcpu int, p_memory int,
                                             p_providers uuid[], p_avoid uuid[], p_dedicated boolean,
                                             p_bindings text[]) RETURNS boolean
LANGUAGE sql STABLE AS $$
  SELECT h.placeable AND h.free_vcpu >= p_vcpu AND h.free_memory_gib >= p_memory
    AND (p_providers IS NULL OR h.provider_id = ANY (p_providers))
    AND (p_bindings IS NULL OR h.boundary_kinds = '{}' OR h.boundary_kinds::text[] && p_bindings)
    AND NOT (h.id = ANY (p_avoid))
    AND CASE WHEN p_dedicated
          THEN h.dedicated_tenant_id = p_tenant OR (h.dedicated_tenant_id IS NULL AND h.empty_gpus = h.gpu_count)
          ELSE h.dedicated_tenant_id IS NULL END
$$;

-- Brings masks and counters of a locked host in line with its holds; also the audit's repair. A tenant's hold counts
-- from its claim on and any other once it has begun (it then has an open usage record): comparing with a clock would
-- free a window whose claim was stamped by a faster one.
CREATE OR REPLACE FUNCTION ledger_recount(p_host uuid, p_at timestamptz) RETURNS void
LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp AS $$
  UPDATE tenants_gpudevice g SET
    free = ((1 << g.slots) - 1) & ~coalesce((SELECT bit_or(ledger_mask(o.start, o.size)) FROM tenants_hold o
             WHERE o.device_id = g.id AND (o.kind = 'tenant' OR EXISTS (
               SELECT 1 FROM tenants_usagerecord r WHERE r.hold_id = o.id AND r.held_to IS NULL))), 0),
    media_free = NOT EXISTS (SELECT 1 FROM tenants_hold o WHERE o.device_id = g.id AND o.media),
    unsettled = (SELECT count(*) FROM tenants_hold o WHERE o.device_id = g.id AND NOT o.settled)
  WHERE g.host_id = p_host;
  UPDATE tenants_host h SET
    empty_gpus = (SELECT count(*) FROM tenants_gpudevice g WHERE g.host_id = h.id AND g.removed_at IS NULL
                   AND g.free = (1 << g.slots) - 1),
    gpu_count = (SELECT count(*) FROM tenants_gpudevice g WHERE g.host_id = h.id AND g.removed_at IS NULL),
    unsettled = (SELECT count(*) FROM tenants_hold o WHERE o.host_id = h.id AND NOT o.settled)
  WHERE h.id = p_host;
$$;

-- Keeps a window for something that is no tenant: foreign, maintenance, fault, reserved. Only on room that nobody
-- holds in that time. NULL: it is held. A dated hold (p_from in the future) leaves the mask alone until it begins.
-- The usage record begins no earlier than the window's last one ended, whatever clock stamped that.
CREATE OR REPLACE FUNCTION ledger_put(p_kind text, p_device uuid, p_start int, p_size int, p_from timestamptz,
                                      p_to timestamptz, p_note text, p_vcpu int, p_memory int, p_now timestamptz)
RETURNS uuid
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
  d record;
  hold uuid := gen_random_uuid();
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
    IF p_from <= p_now THEN
      UPDATE tenants_host SET free_vcpu = free_vcpu - p_vcpu, free_memory_gib = free_memory_gib - p_memory
        WHERE id = d.host_id;
      INSERT INTO tenants_usagerecord (id, hold_id, kind, device_id, provider_id, start, size, profile, vcpu, memory_gib,
                                       held_from, rule)
      VALUES (gen_random_uuid(), hold, p_kind, d.id, d.provider_id, p_start, p_size, '', p_vcpu, p_memory,
              greatest(p_from, (SELECT max(r.held_to) FROM tenants_usagerecord r WHERE r.device_id = d.id
                                  AND r.start < p_start + p_size AND p_start < r.start + r.size)), '-');
      PERFORM ledger_recount(d.host_id, p_now);
    END IF;
  EXCEPTION WHEN exclusion_violation THEN RETURN NULL;
  END;
  RETURN hold;
END $$;

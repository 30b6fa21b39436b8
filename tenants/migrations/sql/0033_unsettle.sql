-- Corrects where holds lie, by the provider's report. p_moves: [{hold, device, start, settled}]; a named hold is
-- settled then as its entry says (true where it says nothing): one whose unit was switched off is a guess again.
-- Swaps pass because the exclusion constraints wait until the end. Never frees: a hold moves or stays.
CREATE OR REPLACE FUNCTION ledger_rebind(p_host uuid, p_moves jsonb, p_at timestamptz) RETURNS int
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
    UPDATE tenants_hold SET device_id = g.id, device_number = g.number, start = m.start, settled = m.settled,
      slots = int8range(g.number * 16 + m.start, g.number * 16 + m.start + size) WHERE id = o.id;
  END LOOP;
  SET CONSTRAINTS hold_no_overlap, hold_one_media IMMEDIATE;
  PERFORM ledger_recount(p_host, p_at);
  RETURN moved;
END $$;

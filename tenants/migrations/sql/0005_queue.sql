-- Does somebody with quota wait for the same kind of room? Newcomers then queue behind; the queue pass goes in order.
CREATE FUNCTION ledger_queue_ahead(p_product text, p_profile text, p_count int, p_not uuid[]) RETURNS boolean
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp AS $$
  SELECT EXISTS (
    SELECT 1 FROM tenants_allocation a JOIN tenants_unit u ON u.allocation_id = a.id
    WHERE a.queued_at IS NOT NULL AND a.released_at IS NULL AND a.deletion_requested_at IS NULL
      AND u.product = p_product AND u.profile = p_profile AND u.gpu_count = p_count AND u.host_id IS NULL
      AND a.id <> ALL (p_not)
      AND EXISTS (SELECT 1 FROM tenants_quotacharge c WHERE c.allocation_id = a.id))
$$;

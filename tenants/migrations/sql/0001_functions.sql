-- Made before the tables: column defaults use them.
CREATE SEQUENCE short_id_number;
CREATE SEQUENCE gpu_device_number START 1;

-- Four base-32 digits (Crockford) while they last, then more; the multiplication by an odd number makes
-- neighbours look different and is a bijection modulo a power of two, so ids stay unique.
CREATE FUNCTION app_short_id(prefix text) RETURNS text
LANGUAGE plpgsql VOLATILE SET search_path = public, pg_temp AS $$
DECLARE
  alphabet constant text := '0123456789abcdefghjkmnpqrstvwxyz';
  n bigint := nextval('short_id_number');
  bits int := 20;
  answer text := '';
BEGIN
  WHILE n >= (1::bigint << bits) LOOP bits := bits + 5; END LOOP;
  n := (n * 660083) & ((1::bigint << bits) - 1);
  WHILE bits > 0 LOOP
    answer := substr(alphabet, (n & 31)::int + 1, 1) || answer;
    n := n >> 5;
    bits := bits - 5;
  END LOOP;
  RETURN prefix || '-' || answer;
END $$;

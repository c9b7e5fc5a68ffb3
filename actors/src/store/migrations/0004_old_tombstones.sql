-- Tombstones are looked for by name, and dropped by age.
CREATE INDEX tombstones_by_name ON tombstones (name);
CREATE INDEX tombstones_by_age ON tombstones (deleted_at_ms);

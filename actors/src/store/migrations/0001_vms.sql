-- Every VM that exists. Names of files, sockets and interfaces derive from the id, so one row is a whole intent.
CREATE TABLE vms (
    id            BLOB PRIMARY KEY NOT NULL CHECK (length(id) = 8),
    name          TEXT NOT NULL UNIQUE,
    request       BLOB UNIQUE,
    phase         TEXT NOT NULL,
    image         TEXT NOT NULL,
    kernel        TEXT NOT NULL,
    size          TEXT NOT NULL,
    network       TEXT NOT NULL,
    tap           INTEGER,
    labels        TEXT NOT NULL,
    restart       TEXT NOT NULL,
    lifetime      TEXT NOT NULL,
    nonce         BLOB,
    operation     BLOB,
    was_ready     INTEGER NOT NULL,
    created_at_ms INTEGER NOT NULL,
    started_at_ms INTEGER,
    last_error    TEXT
) STRICT, WITHOUT ROWID;

-- Every VM that ever existed and does no more: its id and its request are never used again.
CREATE TABLE tombstones (
    id            BLOB PRIMARY KEY NOT NULL CHECK (length(id) = 8),
    name          TEXT NOT NULL,
    request       BLOB UNIQUE,
    deleted_at_ms INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- Which root key all that is sealed is under: `proof` is sealed under it and opens under no other.
CREATE TABLE vault (
    one        INTEGER PRIMARY KEY CHECK (one = 1),
    generation INTEGER NOT NULL CHECK (generation >= 1),
    proof      BLOB NOT NULL
) STRICT;

-- What teams need to reach other things. `value` is sealed under a key of its own, `data_key`, which is sealed under the root
-- key; both are bound to team, name and version.
CREATE TABLE credentials (
    team        TEXT NOT NULL,
    name        TEXT NOT NULL,
    version     INTEGER NOT NULL CHECK (version >= 1),
    description TEXT NOT NULL,
    made_by     TEXT NOT NULL,
    made_at     INTEGER NOT NULL,
    changed_by  TEXT NOT NULL,
    changed_at  INTEGER NOT NULL,
    used_at     INTEGER,
    used_for    TEXT,
    data_key    BLOB NOT NULL,
    value       BLOB NOT NULL,
    PRIMARY KEY (team, name)
) STRICT;

-- The greatest version of a credential that was removed, for each team: a later one of the same name begins after it.
CREATE TABLE credential_floors (
    team    TEXT PRIMARY KEY,
    version INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

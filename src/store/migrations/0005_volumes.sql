-- What teams keep beyond their sessions. `state`: making, ready, removing.
CREATE TABLE volumes (
    id         TEXT PRIMARY KEY,
    team       TEXT NOT NULL,
    name       TEXT NOT NULL,
    size_bytes INTEGER NOT NULL,
    created_by TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    state      TEXT NOT NULL
) STRICT;

-- A volume that is being removed has given its name back.
CREATE UNIQUE INDEX volumes_name ON volumes (team, name) WHERE state <> 'removing';

-- Which a session has, in its order: a list of {id, name, mode}. A volume is attached as long as one that lives has it.
ALTER TABLE sessions ADD COLUMN volumes TEXT NOT NULL DEFAULT '[]';

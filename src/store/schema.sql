-- What the migrations come to, schema 10. Made by a test (src/store/migrate.rs), read by nobody but people.

CREATE TABLE archived (
    last   INTEGER PRIMARY KEY,
    digest BLOB NOT NULL CHECK (length(digest) = 32),
    line   TEXT NOT NULL
) STRICT;

CREATE TABLE audit (
    seq       INTEGER PRIMARY KEY AUTOINCREMENT,
    id        TEXT NOT NULL UNIQUE,
    at        INTEGER NOT NULL,
    stage     TEXT NOT NULL,
    intent    TEXT,
    principal TEXT NOT NULL,
    session   TEXT,
    kind      TEXT NOT NULL,
    event     TEXT NOT NULL,
    outcome   TEXT
, digest BLOB, result TEXT) STRICT;

CREATE INDEX audit_at ON audit (at);

CREATE INDEX audit_intent ON audit (intent, seq) WHERE intent IS NOT NULL;

CREATE INDEX audit_kind ON audit (kind, seq);

CREATE INDEX audit_principal ON audit (principal, seq);

CREATE INDEX audit_result ON audit (result, seq) WHERE result IS NOT NULL;

CREATE INDEX audit_session ON audit (session, seq) WHERE session IS NOT NULL;

CREATE TABLE checkpoints (
    n    INTEGER PRIMARY KEY AUTOINCREMENT,
    seq  INTEGER NOT NULL,
    line TEXT NOT NULL
) STRICT;

CREATE INDEX checkpoints_seq ON checkpoints (seq);

CREATE TABLE credential_floors (
    team    TEXT PRIMARY KEY,
    version INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

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

CREATE TABLE idempotency (
    principal TEXT NOT NULL,
    key       TEXT NOT NULL,
    request   BLOB NOT NULL,
    session   TEXT NOT NULL REFERENCES sessions (id),
    at        INTEGER NOT NULL,
    PRIMARY KEY (principal, key)
) STRICT, WITHOUT ROWID;

CREATE INDEX idempotency_at ON idempotency (at);

CREATE TABLE installation (
    one INTEGER PRIMARY KEY CHECK (one = 1),
    id  TEXT NOT NULL
) STRICT;

CREATE TABLE keys (
    id         TEXT PRIMARY KEY,
    name       TEXT NOT NULL,
    team       TEXT NOT NULL,
    digest     BLOB NOT NULL CHECK (length(digest) = 32),
    created_at INTEGER NOT NULL
, role TEXT NOT NULL DEFAULT 'member', scopes TEXT, session TEXT, created_by TEXT NOT NULL DEFAULT 'unknown', expires_at INTEGER, revoked_at INTEGER, revoked_by TEXT, last_used_at INTEGER) STRICT;

CREATE INDEX keys_session ON keys (session) WHERE session IS NOT NULL;

CREATE INDEX keys_team ON keys (team, id);

CREATE TABLE mirrored (
    one INTEGER PRIMARY KEY CHECK (one = 1),
    seq INTEGER NOT NULL
) STRICT;

CREATE TABLE rules (
    name    TEXT PRIMARY KEY,
    rule    TEXT NOT NULL,
    made_at INTEGER NOT NULL,
    made_by TEXT NOT NULL
) STRICT;

CREATE TABLE sealed (
    name  TEXT PRIMARY KEY,
    value BLOB NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE sessions (
    seq             INTEGER PRIMARY KEY,
    id              TEXT NOT NULL UNIQUE,
    name            TEXT,
    team            TEXT NOT NULL,
    template        TEXT NOT NULL,
    image           TEXT NOT NULL,
    created_by      TEXT NOT NULL,
    labels          TEXT NOT NULL,
    env             TEXT NOT NULL,
    workdir         TEXT,
    memory_bytes    INTEGER NOT NULL,
    cpus            REAL NOT NULL,
    pids            INTEGER NOT NULL,
    disk_bytes      INTEGER NOT NULL,
    allow_root      INTEGER NOT NULL CHECK (allow_root IN (0, 1)),
    timeout_s       INTEGER NOT NULL,
    phase           TEXT NOT NULL,
    reason          TEXT,
    message         TEXT,
    generation      INTEGER NOT NULL,
    sandbox         TEXT,
    created_at      INTEGER NOT NULL,
    ready_at        INTEGER,
    ends_at         INTEGER NOT NULL,
    ended_at        INTEGER
, template_version INTEGER NOT NULL DEFAULT 0, setup TEXT NOT NULL DEFAULT '{}', max_timeout_s  INTEGER NOT NULL DEFAULT 0, idle_timeout_s INTEGER, on_timeout     TEXT NOT NULL DEFAULT 'stop', active_at      INTEGER, paused_at      INTEGER, open_files        INTEGER NOT NULL DEFAULT 65536, processes_started INTEGER NOT NULL DEFAULT 1000000000, volumes TEXT NOT NULL DEFAULT '[]', egress TEXT NOT NULL DEFAULT '{}') STRICT;

CREATE INDEX sessions_live ON sessions (seq) WHERE ended_at IS NULL;

CREATE UNIQUE INDEX sessions_live_name ON sessions (team, name)
    WHERE name IS NOT NULL AND ended_at IS NULL;

CREATE INDEX sessions_of_team ON sessions (team, seq);

CREATE TABLE templates (
    owner    TEXT NOT NULL,
    name     TEXT NOT NULL,
    version  INTEGER NOT NULL CHECK (version >= 1),
    document TEXT,
    made_by  TEXT NOT NULL,
    made_at  INTEGER NOT NULL,
    PRIMARY KEY (owner, name, version)
) STRICT, WITHOUT ROWID;

CREATE TABLE vault (
    one        INTEGER PRIMARY KEY CHECK (one = 1),
    generation INTEGER NOT NULL CHECK (generation >= 1),
    proof      BLOB NOT NULL
) STRICT;

CREATE TABLE volumes (
    id         TEXT PRIMARY KEY,
    team       TEXT NOT NULL,
    name       TEXT NOT NULL,
    size_bytes INTEGER NOT NULL,
    created_by TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    state      TEXT NOT NULL
) STRICT;

CREATE UNIQUE INDEX volumes_name ON volumes (team, name) WHERE state <> 'removing';

-- The record as a chain: each row's digest covers the row before it. What is there is chained by the step that
-- follows this text. `result` is that of `outcome`, to be looked for.
ALTER TABLE audit ADD COLUMN digest BLOB;
ALTER TABLE audit ADD COLUMN result TEXT;
UPDATE audit SET result = json_extract(outcome, '$.result') WHERE outcome IS NOT NULL;

-- One for each thing that readers may ask for; `audit_session` is there already.
CREATE INDEX audit_kind ON audit (kind, seq);
CREATE INDEX audit_principal ON audit (principal, seq);
CREATE INDEX audit_result ON audit (result, seq) WHERE result IS NOT NULL;
CREATE INDEX audit_intent ON audit (intent, seq) WHERE intent IS NOT NULL;
CREATE INDEX audit_at ON audit (at);

-- Signed statements of what the chain was, in the order in which they were made.
CREATE TABLE checkpoints (
    n    INTEGER PRIMARY KEY AUTOINCREMENT,
    seq  INTEGER NOT NULL,
    line TEXT NOT NULL
) STRICT;
CREATE INDEX checkpoints_seq ON checkpoints (seq);

-- How far the record was copied into the journal.
CREATE TABLE mirrored (
    one INTEGER PRIMARY KEY CHECK (one = 1),
    seq INTEGER NOT NULL
) STRICT;

-- Secrets of the daemon's own, sealed under the vault's key.
CREATE TABLE sealed (
    name  TEXT PRIMARY KEY,
    value BLOB NOT NULL
) STRICT, WITHOUT ROWID;

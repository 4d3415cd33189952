-- Keys have a role, scopes, an end and a last use; tokens of sessions are keys too. The operator's rules can be stored.
ALTER TABLE keys ADD COLUMN role TEXT NOT NULL DEFAULT 'member';
ALTER TABLE keys ADD COLUMN scopes TEXT;
ALTER TABLE keys ADD COLUMN session TEXT;
ALTER TABLE keys ADD COLUMN created_by TEXT NOT NULL DEFAULT 'unknown';
ALTER TABLE keys ADD COLUMN expires_at INTEGER;
ALTER TABLE keys ADD COLUMN revoked_at INTEGER;
ALTER TABLE keys ADD COLUMN revoked_by TEXT;
ALTER TABLE keys ADD COLUMN last_used_at INTEGER;
CREATE INDEX keys_team ON keys (team, id);
CREATE INDEX keys_session ON keys (session) WHERE session IS NOT NULL;

CREATE TABLE rules (
    name    TEXT PRIMARY KEY,
    rule    TEXT NOT NULL,
    made_at INTEGER NOT NULL,
    made_by TEXT NOT NULL
) STRICT;

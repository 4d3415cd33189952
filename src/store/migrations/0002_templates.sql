-- Templates: each version a row. `owner` is the team that made one through the API, or '' for the files beside the
-- configuration. A version without a document says that the template was removed; the next one counts on from there.
CREATE TABLE templates (
    owner    TEXT NOT NULL,
    name     TEXT NOT NULL,
    version  INTEGER NOT NULL CHECK (version >= 1),
    document TEXT,
    made_by  TEXT NOT NULL,
    made_at  INTEGER NOT NULL,
    PRIMARY KEY (owner, name, version)
) STRICT, WITHOUT ROWID;

-- 0: admitted before templates had versions.
ALTER TABLE sessions ADD COLUMN template_version INTEGER NOT NULL DEFAULT 0;
ALTER TABLE sessions ADD COLUMN setup TEXT NOT NULL DEFAULT '{}';

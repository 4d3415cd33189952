-- Deadlines that may change in a session's life, beside `ends_at`.
ALTER TABLE sessions ADD COLUMN max_timeout_s  INTEGER NOT NULL DEFAULT 0;
ALTER TABLE sessions ADD COLUMN idle_timeout_s INTEGER;
ALTER TABLE sessions ADD COLUMN on_timeout     TEXT NOT NULL DEFAULT 'stop';
ALTER TABLE sessions ADD COLUMN active_at      INTEGER;
ALTER TABLE sessions ADD COLUMN paused_at      INTEGER;
-- What was admitted before could ask for no more than it has.
UPDATE sessions SET max_timeout_s = timeout_s;

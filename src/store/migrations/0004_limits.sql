-- Bounds that sandboxes did not have before: what lives goes on with the most that there is.
ALTER TABLE sessions ADD COLUMN open_files        INTEGER NOT NULL DEFAULT 65536;
ALTER TABLE sessions ADD COLUMN processes_started INTEGER NOT NULL DEFAULT 1000000000;

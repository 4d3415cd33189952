-- What a session may reach: its template's rules when it was admitted, and its own.
ALTER TABLE sessions ADD COLUMN egress TEXT NOT NULL DEFAULT '{}';

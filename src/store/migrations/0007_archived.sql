-- What of the record is in files now, and not in `audit` any more: records up to the greatest `last`. `digest` is that of
-- record `last`, which the first one that is left follows; `line` says all of it, signed.
CREATE TABLE archived (
    last   INTEGER PRIMARY KEY,
    digest BLOB NOT NULL CHECK (length(digest) = 32),
    line   TEXT NOT NULL
) STRICT;

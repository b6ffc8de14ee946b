-- What names this workspace where its path would not: two machines may have the same path and one Chroma server.
CREATE TABLE identity (
    workspace_id TEXT NOT NULL
);
INSERT INTO identity VALUES (lower(hex(randomblob(8))));

-- Tables of the feedback stage.

-- Writes that wait for ConPort, in order. A row is delivered once ConPort has confirmed the state it held when it
-- was sent: `revision` counts the replacements of a waiting value. Delivered decisions stay, so that the same
-- one is not logged twice; delivered custom data goes.
CREATE TABLE outbox (
    id           INTEGER PRIMARY KEY AUTOINCREMENT,
    kind         TEXT NOT NULL CHECK (kind IN ('custom_data', 'decision')),
    category     TEXT NOT NULL,             -- '' for decisions
    key          TEXT NOT NULL,             -- ConPort key, or the decision's dedupe key
    body         TEXT NOT NULL,             -- JSON: the value, or the decision
    revision     INTEGER NOT NULL DEFAULT 0,
    created_at   TEXT NOT NULL,
    delivered_at TEXT,
    last_error   TEXT,
    UNIQUE (kind, category, key)
);
CREATE INDEX outbox_waiting ON outbox (id) WHERE delivered_at IS NULL;

-- What `UserFeedback` held when it was last read, without its text: tells which ratings changed or went since.
CREATE TABLE feedback_states (
    key         TEXT PRIMARY KEY,
    feedback_id TEXT NOT NULL,
    stamp       TEXT NOT NULL,              -- id and time of the row in ConPort; '' where they do not settle its state
    sha256      TEXT NOT NULL               -- of the entry
) WITHOUT ROWID;
CREATE INDEX feedback_states_by_id ON feedback_states (feedback_id);

-- Where each query stood in the data sets of this workspace: held out for test at least once, or trained on.
-- A query that was once test never trains, and one that was trained on never tests.
CREATE TABLE query_slices (
    query_sha256 TEXT PRIMARY KEY,          -- of the normalised query
    slice        TEXT NOT NULL CHECK (slice IN ('test', 'train')),
    dataset_id   TEXT NOT NULL,
    assigned_at  TEXT NOT NULL
);

-- Model versions, their lineage, the aliases that point at them, and the log of who changed what.
CREATE TABLE model_versions (
  version         TEXT PRIMARY KEY,
  kind            TEXT NOT NULL CHECK (kind IN ('base', 'tuned')),
  path            TEXT NOT NULL UNIQUE,  -- relative to the workspace where it lies inside
  digest          TEXT NOT NULL,
  files           TEXT NOT NULL,         -- JSON: file -> sha256
  manifest_sha256 TEXT,                  -- of ragtune.json; a base model has none
  base_model      TEXT NOT NULL,
  dataset_id      TEXT,
  job_id          TEXT,
  created_at      TEXT NOT NULL,
  config          TEXT NOT NULL,
  metrics         TEXT NOT NULL,
  gate            TEXT,
  stale_at        TEXT                   -- since when a rating it was trained on is withdrawn
) STRICT;

CREATE TABLE model_feedback (
  feedback_id TEXT NOT NULL,
  version     TEXT NOT NULL REFERENCES model_versions (version),
  PRIMARY KEY (feedback_id, version)
) STRICT, WITHOUT ROWID;
CREATE INDEX model_feedback_by_version ON model_feedback (version);

CREATE TABLE model_aliases (
  alias   TEXT PRIMARY KEY CHECK (alias IN ('champion', 'challenger')),
  version TEXT NOT NULL REFERENCES model_versions (version)
) STRICT;

CREATE TABLE audit_log (
  entry_id INTEGER PRIMARY KEY AUTOINCREMENT,
  at       TEXT NOT NULL,
  action   TEXT NOT NULL,
  subject  TEXT NOT NULL,
  before   TEXT,
  after    TEXT,
  actor    TEXT NOT NULL,
  reason   TEXT NOT NULL,
  details  TEXT NOT NULL DEFAULT '{}'
) STRICT;
CREATE INDEX audit_log_by_subject ON audit_log (subject, entry_id);
CREATE TRIGGER audit_log_is_not_changed BEFORE UPDATE ON audit_log
BEGIN
  SELECT raise(ABORT, 'the audit log is append-only');
END;
CREATE TRIGGER audit_log_is_not_deleted BEFORE DELETE ON audit_log
BEGIN
  SELECT raise(ABORT, 'the audit log is append-only');
END;

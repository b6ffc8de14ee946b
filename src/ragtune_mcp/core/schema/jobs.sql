-- Background jobs. `worker` names who holds a job: nobody while it is queued; while it is starting first the process
-- that starts its worker ('starter:...'), then the worker; the worker from then on.
CREATE TABLE jobs (
  job_id              TEXT PRIMARY KEY,
  kind                TEXT NOT NULL CHECK (kind IN ('finetune', 'distill', 'index', 'export')),
  status              TEXT NOT NULL CHECK (status IN ('queued', 'starting', 'running', 'completed', 'failed', 'cancelled')),
  spec                TEXT NOT NULL,
  attempt             INTEGER NOT NULL DEFAULT 1,
  worker              TEXT NOT NULL DEFAULT '',
  progress            REAL NOT NULL DEFAULT 0 CHECK (progress BETWEEN 0 AND 100),
  message             TEXT NOT NULL DEFAULT '',
  created_at          TEXT NOT NULL,
  queued_at           TEXT NOT NULL,
  started_at          TEXT,
  heartbeat_at        TEXT,
  first_progress      REAL,
  first_progress_at   TEXT,
  progress_at         TEXT,
  finished_at         TEXT,
  cancel_requested_at TEXT,
  result              TEXT,
  error               TEXT
) STRICT;
CREATE INDEX jobs_by_status ON jobs (status, queued_at);
-- The last guard of "one at a time": the database itself refuses a second active job of these kinds.
CREATE UNIQUE INDEX jobs_one_active ON jobs (kind)
  WHERE status IN ('starting', 'running') AND kind IN ('finetune', 'distill', 'index');

CREATE TABLE job_events (
  event_id INTEGER PRIMARY KEY,
  job_id   TEXT NOT NULL REFERENCES jobs (job_id),
  at       TEXT NOT NULL,
  message  TEXT NOT NULL,
  progress REAL,
  fields   TEXT NOT NULL DEFAULT '{}'
) STRICT;
CREATE INDEX job_events_by_job ON job_events (job_id, event_id);

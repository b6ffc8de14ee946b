-- Tables of the experiment stage. The log is exposures + answers + outcomes: append-only, ordered by `seq`.
CREATE TABLE trials (
  test_id TEXT PRIMARY KEY,
  baseline_version TEXT NOT NULL,
  test_version TEXT NOT NULL,
  mode TEXT NOT NULL CHECK (mode IN ('split', 'interleave')),
  status TEXT NOT NULL CHECK (status IN ('active', 'ramping', 'completed', 'stopped')),
  metrics TEXT NOT NULL,
  alpha REAL NOT NULL,
  stop_rule TEXT NOT NULL CHECK (stop_rule IN ('hybrid', 'anytime', 'fixed')),
  salt TEXT NOT NULL,
  duration_s REAL NOT NULL,
  started_at TEXT NOT NULL,
  ends_at TEXT NOT NULL,
  ended_at TEXT,
  ramp_phase INTEGER,
  ramp_ends_at TEXT,
  ramp_result TEXT NOT NULL DEFAULT '',
  end_reason TEXT NOT NULL DEFAULT '',
  gate TEXT NOT NULL DEFAULT '{}',
  force_reason TEXT NOT NULL DEFAULT '',
  minimum_detectable_effect REAL NOT NULL,
  read_seq INTEGER NOT NULL DEFAULT 0,
  tallies TEXT NOT NULL DEFAULT '{}'
);
CREATE UNIQUE INDEX trials_one_running ON trials ((1)) WHERE status IN ('active', 'ramping');

CREATE TABLE trial_phases (
  test_id TEXT NOT NULL REFERENCES trials (test_id),
  phase INTEGER NOT NULL,
  split REAL NOT NULL,
  started_at TEXT NOT NULL,
  PRIMARY KEY (test_id, phase)
);

-- One row a search, written before the variant runs; test_id and what follows it are null while no test runs.
CREATE TABLE exposures (
  seq INTEGER PRIMARY KEY AUTOINCREMENT,
  query_id TEXT NOT NULL UNIQUE,
  query TEXT NOT NULL,
  k INTEGER NOT NULL,
  unit TEXT NOT NULL,
  at TEXT NOT NULL,
  test_id TEXT REFERENCES trials (test_id),
  phase INTEGER,
  propensity REAL,
  assigned TEXT CHECK (assigned IN ('baseline', 'test', 'both')),
  is_first INTEGER NOT NULL DEFAULT 0,
  covariate REAL NOT NULL DEFAULT 0
);
CREATE INDEX exposures_unit ON exposures (test_id, unit, seq);
CREATE INDEX exposures_test ON exposures (test_id, seq);
CREATE INDEX exposures_at ON exposures (at);

-- What was shown; an exposure without an answer is a search that died on the way.
CREATE TABLE answers (
  seq INTEGER PRIMARY KEY AUTOINCREMENT,
  exposure_seq INTEGER NOT NULL UNIQUE REFERENCES exposures (seq),
  test_id TEXT,
  at TEXT NOT NULL,
  served TEXT,
  version TEXT NOT NULL,
  failure TEXT NOT NULL DEFAULT '',
  latency_ms REAL NOT NULL,
  results TEXT NOT NULL
);
CREATE INDEX answers_test ON answers (test_id, seq);

CREATE TABLE shown_documents (
  text_sha256 TEXT PRIMARY KEY,
  text TEXT NOT NULL
) WITHOUT ROWID;

CREATE TABLE feedback (
  feedback_id TEXT PRIMARY KEY,
  query_id TEXT NOT NULL REFERENCES exposures (query_id),
  rater TEXT NOT NULL,
  comment TEXT NOT NULL DEFAULT '',
  created_at TEXT NOT NULL,
  updated_at TEXT NOT NULL,
  UNIQUE (query_id, rater)
);

-- One row an opinion; an edit is a new row with the next revision.
CREATE TABLE outcomes (
  seq INTEGER PRIMARY KEY AUTOINCREMENT,
  submission INTEGER NOT NULL,
  query_id TEXT NOT NULL REFERENCES exposures (query_id),
  exposure_seq INTEGER NOT NULL REFERENCES exposures (seq),
  test_id TEXT,
  unit TEXT NOT NULL,
  rater TEXT NOT NULL,
  kind TEXT NOT NULL CHECK (kind IN ('answer', 'satisfaction', 'document', 'helpful')),
  item TEXT NOT NULL DEFAULT '',
  value REAL NOT NULL,
  rank INTEGER,
  gap REAL,
  revision INTEGER NOT NULL,
  replaces INTEGER,
  state TEXT NOT NULL CHECK (state IN ('counted', 'edit', 'late_edit', 'late', 'ramp')),
  at TEXT NOT NULL,
  UNIQUE (query_id, kind, item, rater, revision)
);
CREATE INDEX outcomes_test ON outcomes (test_id, seq);
CREATE INDEX outcomes_unit ON outcomes (test_id, unit, seq);
CREATE INDEX outcomes_history ON outcomes (unit, kind);

CREATE TABLE decisions (
  seq INTEGER PRIMARY KEY AUTOINCREMENT,
  test_id TEXT NOT NULL REFERENCES trials (test_id),
  at TEXT NOT NULL,
  recommendation TEXT NOT NULL,
  reasons TEXT NOT NULL,
  n INTEGER NOT NULL,
  p_anytime REAL,
  p_value REAL,
  is_final INTEGER NOT NULL
);
CREATE UNIQUE INDEX decisions_final ON decisions (test_id) WHERE is_final = 1;
CREATE INDEX decisions_test ON decisions (test_id, seq);

-- Checkpoint of the incremental statistics; can be deleted at any time, the log rebuilds it.
CREATE TABLE trial_checkpoints (
  test_id TEXT PRIMARY KEY REFERENCES trials (test_id),
  at TEXT NOT NULL,
  state TEXT NOT NULL
);

CREATE TABLE replays (
  test_id TEXT NOT NULL REFERENCES trials (test_id),
  at TEXT NOT NULL,
  result TEXT NOT NULL
);

-- Tables of the retrieval stage.

-- The indexed documents: texts live here, vectors in Chroma.
CREATE TABLE documents (
    doc_id TEXT PRIMARY KEY,
    source TEXT NOT NULL,      -- files, conport, chroma:<collection>
    origin TEXT NOT NULL,      -- the file or item the document was cut from; replaced and removed as a whole
    title TEXT NOT NULL,
    text TEXT NOT NULL,
    sha256 TEXT NOT NULL,      -- of text
    changed_at TEXT NOT NULL
);
CREATE INDEX documents_by_origin ON documents (source, origin);

-- One Chroma collection each. Only 'ready' ones answer searches; 'building' ones are filled and then flipped.
CREATE TABLE collections (
    name TEXT PRIMARY KEY,     -- Chroma's name
    version TEXT NOT NULL,
    digest TEXT NOT NULL,      -- of the model whose vectors it holds
    dimension INTEGER NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('building', 'ready', 'retired')),
    created_at TEXT NOT NULL,
    ready_at TEXT,
    encoded INTEGER NOT NULL DEFAULT 0,
    encode_s REAL NOT NULL DEFAULT 0
);
CREATE UNIQUE INDEX collections_one_ready ON collections (version) WHERE state = 'ready';
CREATE UNIQUE INDEX collections_one_building ON collections (version) WHERE state = 'building';

-- Which text each vector was made from. Written after Chroma confirmed the vector, deleted after Chroma forgot it.
CREATE TABLE vectors (
    collection TEXT NOT NULL REFERENCES collections (name) ON DELETE CASCADE,
    doc_id TEXT NOT NULL,
    sha256 TEXT NOT NULL,
    PRIMARY KEY (collection, doc_id)
) WITHOUT ROWID;
CREATE INDEX vectors_by_text ON vectors (sha256, collection);

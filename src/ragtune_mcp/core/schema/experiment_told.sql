-- sha256 of the results that ConPort was told of an ended test; '' while it was told nothing.
ALTER TABLE trials ADD COLUMN told TEXT NOT NULL DEFAULT '';

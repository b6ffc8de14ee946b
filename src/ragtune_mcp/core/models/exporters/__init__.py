"""A registered model in other programs' formats, each proven against its source."""

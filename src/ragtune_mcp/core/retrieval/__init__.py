"""Documents to answers: sources, chunking, one vector collection per model version, search."""

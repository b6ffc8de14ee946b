"""Live comparison of two versions: assignment, exposures, statistics, decision."""

"""The shared core: stages in the order the data flows. It knows no surface."""

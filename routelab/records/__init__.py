"""Records of runs on disk: cache, lookup by name, lineage."""

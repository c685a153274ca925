"""Records of runs on disk: the cache of runs, lookup by name, and lineage."""

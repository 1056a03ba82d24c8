"""Is it any good: scripts whose numbers stand in the docs."""

"""Jobs: a body checked and stored, its state, its events."""

"""Jobs: validating and storing requests, reading their state, following their events."""

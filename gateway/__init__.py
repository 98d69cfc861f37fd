"""HTTP in, jobs out. Knows Flask; knows no engine and no Redis key."""

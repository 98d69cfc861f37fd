"""Worker processes: one RQ worker with many jobs in flight (here), over one engine (edge, cloud)."""

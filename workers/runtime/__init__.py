"""What both tiers' worker processes share: one RQ worker with many jobs in flight on one engine."""

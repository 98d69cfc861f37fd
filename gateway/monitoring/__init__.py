"""Monitoring: health, readiness, KV caches and statistics."""

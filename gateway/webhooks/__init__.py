"""Webhooks: calls to the addresses that jobs name, when they have finished."""

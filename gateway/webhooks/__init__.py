"""Webhooks: a job that has finished is sent to the address that it names."""

"""The cloud tier: the large model verifies drafts, or answers without one."""

"""The cloud tier: vLLM verifies drafts, or writes from nothing."""

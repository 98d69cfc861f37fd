"""The edge tier: a small model on llama.cpp writes drafts, each assessed for its confidence."""

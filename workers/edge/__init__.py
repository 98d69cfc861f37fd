"""The edge tier: llama.cpp drafts, and says how sure it is."""

"""The messages between processes, as frozen pydantic models, and their msgpack form (`wire`).

Owns the vocabulary: request, draft, confidence, policy, result, event. Knows no Redis, Flask or engine.
"""

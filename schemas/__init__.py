"""What crosses a process boundary, as frozen pydantic models, and its msgpack form (`wire`).

Owns the vocabulary: request, draft, confidence, policy, result, event. Knows no Redis, Flask or engine.
"""

"""All that lives in Redis: keys, states, request records, event streams, queues, worker reports.

Shared by gateway and workers. Knows no Flask and no engine.
"""

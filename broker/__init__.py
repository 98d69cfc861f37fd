"""Everything that is kept in Redis: keys, states, request records, event streams, queues, worker reports.

Shared by gateway and workers. Knows neither Flask nor any engine.
"""

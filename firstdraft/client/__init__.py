"""The Python client: `Client` and `AsyncClient` over one description of what is said (calls.py, following.py)."""

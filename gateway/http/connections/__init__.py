"""gunicorn's worker: `framing` finds where a request ends, `client_socket` buffers bytes, `worker` is the loop."""

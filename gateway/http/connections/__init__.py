"""How gunicorn serves us: `framing` is where a request ends, `client_socket` one client's bytes, `worker` the loop."""

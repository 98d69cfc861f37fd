"""The WebSocket: `connection` is frames on a socket, `session` what is said over it."""

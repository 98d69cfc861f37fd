"""The WebSocket: `connection` reads and writes frames, `session` answers messages and sends events."""

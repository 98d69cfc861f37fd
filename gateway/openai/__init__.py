"""OpenAI's API over Firstdraft's own: bodies in, shapes out. Only `serving` and the routes touch the broker."""

"""OpenAI's API on top of jobs. Only `serving` and the routes use the broker."""

"""What a user imports and types: the command line, and what it needs to run everything on one machine."""

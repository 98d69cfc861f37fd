"""The routes, a file for each thing that they are about. Each has `add(app, services)`, called by `gateway.app`."""

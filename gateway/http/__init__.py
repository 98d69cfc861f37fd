"""What every route shares: who asks, errors, limits, connections, health."""

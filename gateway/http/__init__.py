"""What every route shares: authentication, errors, limits, answers, connections."""

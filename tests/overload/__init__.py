"""More than can be served, clients that do not give up, and readers that do not read."""

"""Who may wait for the engine, and for how long."""

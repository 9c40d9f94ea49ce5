"""Which of several servers gets a call: the one that has its adapter, while it has room."""

"""Call log, audit log and traces."""

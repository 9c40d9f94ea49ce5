"""Places that adapters can be imported from."""

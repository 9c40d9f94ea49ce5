"""Adapters over the wire: uploads, imports, names, aliases, expiry and residency."""

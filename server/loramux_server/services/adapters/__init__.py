"""Adapters over the wire: uploads, imports, names, aliases, and where their weights are to be."""

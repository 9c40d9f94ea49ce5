"""Routing among several servers: calls go to the one that has their adapter, if it has room."""

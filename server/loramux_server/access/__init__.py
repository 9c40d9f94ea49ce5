"""Who calls, and what they may do: keys, certificates, roles, tenants and their limits."""

"""Authentication, authorisation and quotas: keys, certificates, roles, tenants."""

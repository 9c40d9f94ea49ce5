"""Authentication, authorization and quotas: keys, certificates, roles, tenants."""

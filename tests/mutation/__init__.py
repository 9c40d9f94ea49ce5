"""Whether tests notice when the validator, the store or the access checks are a little wrong."""

"""Whether a server that is used for long in all sorts of ways stays as small as it was."""

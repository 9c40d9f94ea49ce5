"""Operations on a CPU: loops compiled by numba for the host's processor."""

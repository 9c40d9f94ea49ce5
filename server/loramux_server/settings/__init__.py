"""The server's settings, by topic. Each group extends the one before."""

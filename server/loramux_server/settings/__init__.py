"""The settings of a server, by what they are about. Each group extends the one before."""

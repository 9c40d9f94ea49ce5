"""The operations of a CPU: loops that are compiled for the machine at hand."""

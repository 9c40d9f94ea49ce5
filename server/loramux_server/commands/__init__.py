"""The commands `loramux serve` and `loramux demo`; imported by the client's command line."""

"""The server's commands, such as `loramux serve`; imported by the client's command line."""

"""Text generation: from the fields of a request to the chunks of its answer."""

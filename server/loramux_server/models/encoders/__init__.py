"""Base models that read whole texts: encoders and encoder-decoders."""

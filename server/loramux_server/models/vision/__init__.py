"""Vision: images encoded by the base model's own modules."""

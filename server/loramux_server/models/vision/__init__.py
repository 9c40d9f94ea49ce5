"""What a base model sees in images."""

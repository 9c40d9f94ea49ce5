"""What is registered and where its bytes are; knows nothing of models and imports no torch."""

"""Images in conversations: from file bytes to the base model's inputs."""

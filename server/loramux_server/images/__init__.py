"""Images in conversations: from files to what a base model takes of them."""

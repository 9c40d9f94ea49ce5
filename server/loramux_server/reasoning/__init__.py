"""What a model thinks before its answer: how its template marks that, and telling it apart."""

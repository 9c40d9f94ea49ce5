"""What frontend and engine say to each other: plain structs, which load no torch."""

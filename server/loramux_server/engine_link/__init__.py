"""The engine process as seen from the frontend: started, called, supervised."""

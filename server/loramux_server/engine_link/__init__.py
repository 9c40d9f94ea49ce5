"""The engine process, seen from the frontend: started, asked, watched."""

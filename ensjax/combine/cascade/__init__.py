"""Members that run only where they can change the decision."""

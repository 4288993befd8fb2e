"""What executes a trained network: one file a runtime."""

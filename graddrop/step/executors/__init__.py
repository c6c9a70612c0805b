"""What makes the step on one device: one file a backend."""

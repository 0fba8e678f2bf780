"""Train the two shipped demo models from nothing, on one CPU core."""

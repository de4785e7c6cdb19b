"""A run as a SavedModel for TensorFlow Serving."""

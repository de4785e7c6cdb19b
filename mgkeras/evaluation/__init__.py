"""Scores, attention, comparison between runs, pictures. NumPy in, plain numbers out; never TensorFlow."""

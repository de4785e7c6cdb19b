"""Public and local cohorts as they are downloaded -> cohort.csv and a data-sheet; no TensorFlow."""

"""Audio files, file lists and training data. Knows no models."""

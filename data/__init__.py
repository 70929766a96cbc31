"""Audio files, file lists and segmentation: everything that knows files and samples but no models."""

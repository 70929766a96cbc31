"""Training: data of a run, PESQ labels, training step, validation, TensorBoard, files of a run."""

"""Trackers of a round: TensorBoard, MLflow, Weights & Biases, Trackio."""

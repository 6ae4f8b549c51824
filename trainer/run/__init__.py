"""What a run keeps: its directory, checkpoints, logs, metrics, and the watch over them."""

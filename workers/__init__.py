"""What runs on the devices: the hybrid worker with its two engines, and the reward worker."""

"""What transports over GPUs share."""

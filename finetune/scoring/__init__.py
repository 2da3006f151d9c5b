"""What an answer is worth: metrics. Loads no torch."""

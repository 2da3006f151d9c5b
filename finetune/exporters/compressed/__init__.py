"""The format of compressed-tensors, which vLLM serves."""

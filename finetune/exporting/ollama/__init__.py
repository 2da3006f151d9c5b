"""Ollama: a Modelfile beside the GGUF file, its chat template in Go's syntax."""

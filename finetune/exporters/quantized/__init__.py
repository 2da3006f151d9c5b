"""Folders of safetensors whose linear layers are quantised, as transformers loads them."""

"""GGUF, the format of llama.cpp and Ollama: one file that holds weights, configuration, tokenizer and chat
template.

The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md (keys and values, then the tensors'
bytes).
"""

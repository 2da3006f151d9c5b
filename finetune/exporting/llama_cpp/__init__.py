"""The real llama.cpp, asked what it makes of a file."""

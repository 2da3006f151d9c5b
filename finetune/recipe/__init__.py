"""The recipe: pure data, loaded from YAML with positions. Imports no torch."""

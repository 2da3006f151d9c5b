"""Whole runs as one HTML page, for people who would rather look than read. Loads no torch."""

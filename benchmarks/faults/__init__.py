"""Seeded faults in one campaign: what a user finds after each of them."""

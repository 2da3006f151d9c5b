"""Smaller bases: weights of linear layers set to 0, by a mask that later training keeps to, or decoder layers
left out."""

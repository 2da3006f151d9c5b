"""Generate answers and measure them."""

"""What an optimizer step is: its learning rates, its groups of weights, when something else is done after
it."""

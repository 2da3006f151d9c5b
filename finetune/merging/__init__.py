"""From a base and an adapter to a model on its own, checked."""

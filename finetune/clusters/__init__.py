"""Clusters: where a training is given to a scheduler, which starts it on machines of its own. A file each."""

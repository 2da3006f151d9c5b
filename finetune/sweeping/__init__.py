"""finetune sweep: the best values of a recipe's keys, each trial an ordinary run
(finetune/sweeping/worker.py)."""

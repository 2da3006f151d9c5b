"""ZeRO-3 while a base is loaded: each process keeps its share of every weight, and never holds a whole model.

Rajbhandari et al. 2020, arXiv:1910.02054.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from finetune import environment


@contextmanager
def sharded_while_loading(precision: str) -> Iterator[None]:
    """transformers' from_pretrained cuts weights up while this lasts, where the launcher asks for ZeRO-3.

    The group of processes must have been formed: a group of one would be taken for the whole.
    """
    if environment.engine() != "zero3":
        yield
        return
    import deepspeed
    from accelerate.utils import DeepSpeedPlugin

    deepspeed.init_distributed(auto_mpi_discovery=False, verbose=False)
    plugin = DeepSpeedPlugin()
    plugin.set_mixed_precision({"fp32": "no"}.get(precision, precision))
    plugin.set_deepspeed_weakref()
    yield
    del plugin

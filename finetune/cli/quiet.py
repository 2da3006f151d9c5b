"""What the libraries print by themselves is kept off the screen: a person sees this program's own lines.

Errors still come through as exceptions, and warnings go to the run's log.
"""

import logging
import os
import warnings

SILENCED = {
    "TRANSFORMERS_VERBOSITY": "error",
    "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TQDM_DISABLE": "1",
    "TOKENIZERS_PARALLELISM": "true",
}


def quiet_libraries() -> None:
    """Set what the libraries look at when they are imported; a value that the user has set stays."""
    for name, value in SILENCED.items():
        os.environ.setdefault(name, value)
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    # A filter, not a level: DeepSpeed sets its own level when it is imported.
    logging.getLogger("DeepSpeed").addFilter(lambda record: record.levelno >= logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=DeprecationWarning)

"""`python -m finetune`."""

import sys
from pathlib import Path

if __name__ == "__main__":
    # Python puts the working folder first; a data_prep of the user's would be taken for ours.
    if not sys.flags.safe_path and Path(sys.path[0]).resolve() != Path(__file__).resolve().parents[1]:
        del sys.path[0]

    from finetune.cli.app import main

    main()

"""How the tests' board is asked."""

ADDRESS = "http://127.0.0.1:7878"
SECRET = "the-token-of-this-board"  # noqa: S105 - of no board but this
COOKIE = "finetune_board_7878"

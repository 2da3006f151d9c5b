"""The one error of this library."""


class DataError(Exception):
    """Data that can't be used; the text names the file, the row and the field, and says what to change."""

    exit_code = 2

"""Numbers with their noun."""


def counted(number: int, one: str, many: str | None = None) -> str:
    """Returns `1 row`, `2,000 rows`.

    Args:
        number: How many.
        one: The noun, perhaps with more behind it.
        many: Its plural, where that is not the noun and an s.
    """
    return f"{number:,} {one if number == 1 else many or one + 's'}"

"""The error for a collection that cannot go on."""


class CollectionError(ValueError):
    """A collection cannot start, go on or be written; the message says why and what to do."""

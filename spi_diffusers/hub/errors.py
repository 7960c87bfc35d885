"""What goes wrong with the Hub."""


class HubError(RuntimeError):
    """Something on the Hub cannot be read or changed; the message names it and says what to do."""

"""The one exception type that users of this library meet."""


class CometError(ValueError):
    """A mistake that the user can mend: the message names the argument or file, and the mend."""

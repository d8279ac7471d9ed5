"""The one exception type that users of this library meet."""


class CometError(ValueError):
    """A mistake that the user can fix: the message names the argument or file, and the fix."""

"""The ``edgellm`` command."""

"""The command line: one thin file per command."""

__all__: list[str] = []

"""The methods, each a frozen dataclass with a name and ``prepare``."""

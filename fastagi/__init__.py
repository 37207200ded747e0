"""Call completion ("call me back when he is free") for an unmodified Asterisk."""

__version__ = "0.1.0"

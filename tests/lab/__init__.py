"""A laboratory: a real Asterisk on loopback, for the tests and the demo."""

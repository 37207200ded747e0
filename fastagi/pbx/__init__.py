"""What we say to Asterisk beside AGI: device states over the poll session, and call files."""

"""Schema, migrations and the one thread that writes."""

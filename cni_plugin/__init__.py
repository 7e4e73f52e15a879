"""podwire: a CNI plugin in Python."""

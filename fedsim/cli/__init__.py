"""The command line: a thin shell, without logic of its own."""

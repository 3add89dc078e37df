"""The command line as a stranger uses it, on real servers."""

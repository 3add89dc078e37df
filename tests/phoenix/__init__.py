"""Against a real Phoenix, which `make test-phoenix` installs; not part of `make test`."""

"""The files of `deploy/`: what can be held against them without the servers that read them."""

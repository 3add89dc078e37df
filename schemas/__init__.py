"""Everything two processes must agree on: names, messages and signatures. Pydantic only, no I/O."""

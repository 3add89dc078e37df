"""Request-reply services of the core worker: what agents may ask about themselves."""

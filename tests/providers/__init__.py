"""A local provider that speaks the OpenAI chat-completions protocol, misbehaves on demand and keeps its own bill."""

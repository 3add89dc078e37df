"""The I/O edge of the workflows: each activity is one transaction or one agent's round."""

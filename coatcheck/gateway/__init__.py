"""What runs in the gateway worker: the processes that hold the keys to the outside world."""

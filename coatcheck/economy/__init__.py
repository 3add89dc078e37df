"""The economy's rules, pure: units, what a call may cost at most, how an auction clears. No I/O, no clock."""

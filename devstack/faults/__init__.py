"""A storm of faults over a fleet of real parts, and the reckoning after it (`make faults`)."""

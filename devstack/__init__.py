"""A whole fleet on one machine with the real parts, and the demo."""

"""The shared vocabulary of managers, agents and clients; imports none of them."""

__version__ = "0.1.0"

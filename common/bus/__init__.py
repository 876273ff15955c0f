"""The message bus: one port (base), two adapters (rabbit, memory)."""

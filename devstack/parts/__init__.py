"""Private real parts - RabbitMQ, PostgreSQL, libvirtd - each on its own port and folder."""

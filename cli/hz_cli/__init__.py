"""The commands of hz: one module each, heavy imports inside the command."""

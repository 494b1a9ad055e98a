"""What the command line can do: one module for one command, or for a few that belong together."""

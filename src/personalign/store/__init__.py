"""Where users' events outlast a process, and where a user is forgotten."""

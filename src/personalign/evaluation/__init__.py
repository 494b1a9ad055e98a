"""How the answers of a run are measured, and how two runs are compared."""

"""What an experiment's author shows: tables, figures and one self-contained page, read from run folders."""

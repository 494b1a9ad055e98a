"""What is asked of a user: which pair of answers to compare next (survey, section 4.3)."""

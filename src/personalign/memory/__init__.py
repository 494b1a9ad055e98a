"""What is kept, inferred and recalled of a user (survey, section 4.1)."""

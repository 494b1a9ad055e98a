"""How an answer is made for a user (survey, section 4.2)."""

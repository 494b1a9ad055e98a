"""How an answer is scored for a user (survey, section 4.2)."""

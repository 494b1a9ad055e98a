"""Who answers what is asked of users (survey, section 4.3)."""

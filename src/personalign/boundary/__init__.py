"""The universal values that personal preferences may not cross (survey, section 3.2)."""

"""Ratings r(y) of texts that can be computed: what data, memory and rewards may all read."""

"""The one decoder, and the scoring of given answers by a plan."""

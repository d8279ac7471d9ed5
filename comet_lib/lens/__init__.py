"""The attention lens: teacher, student and their difference."""

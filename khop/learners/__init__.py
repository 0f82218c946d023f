"""How policies improve."""

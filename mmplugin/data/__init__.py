"""The built-in mini sets, and the checks of a user's own data."""

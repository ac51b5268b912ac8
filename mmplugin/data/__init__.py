"""The built-in sets, the checks of a user's own data, samplers and transforms."""

"""Plans and comparisons as text, tables and pages."""

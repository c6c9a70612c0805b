"""What an optimizer remembers between two steps."""

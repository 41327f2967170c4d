"""Built-in problems: real text, images, closed-form ones."""
